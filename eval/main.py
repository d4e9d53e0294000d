"""Evaluate a checkpoint, or each one of a live run: the same tasks and numbers as in training.

    python eval/main.py --checkpoint runs/gpt2/checkpoints/latest --tasks hellaswag val_loss
    python eval/main.py --watch runs/gpt2 --tasks hellaswag val_loss

Alone or under torchrun. Prints a table; `--json FILE` writes the same numbers by tag, and
`--items-out FOLDER` what became of each item, for eval/compare.py. A watch writes to the run's
`tensorboard/eval/` and `evals.jsonl`, ends when the run does, and goes on where it was stopped.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.one_checkpoint import Outputs, evaluate
from eval.subject import EvalOptions
from eval.tasks.registry import check_tasks
from eval.watching.watch import WatchRequest, watch
from parallel.ranks import silence_other_ranks, start, stop, user_errors

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint, or each checkpoint of a run as it appears."""

    checkpoint: Path | None = None
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    watch: Path | None = None
    """Run folder, such as runs/gpt2: each checkpoint is evaluated once, until the run is over."""
    tasks: tuple[str, ...] = ()
    """What to measure: hellaswag, val_loss, lambada, piqa, arc_easy, openbookqa, wikitext,
    pydoc_choice. Default: hellaswag and val_loss; of a watched run its own tasks and val_loss."""
    json: Path | None = None
    """File to write the numbers to, by tag."""
    items_out: Path | None = None
    """Folder for what became of each item: one .npz a task (watching: in a folder a step)."""
    idle_minutes: float | None = None
    """End a watch after so long without a sign of life; default: wait while the run is running,
    preempted or dead, and end when it has finished or failed."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    task: EvalOptions = EvalOptions()
    """How tasks are run."""

    def __post_init__(self) -> None:
        check_tasks([*self.tasks, *self.task.files])
        if (self.checkpoint is None) == (self.watch is None):
            raise ValueError("give one of --checkpoint FOLDER and --watch RUN")
        if self.watch is not None and self.json is not None:
            raise ValueError(f"--json has no place in a watch; read {self.watch}/evals.jsonl")


def main() -> None:
    """Evaluate once, or watch until the run is over."""
    silence_other_ranks()
    with user_errors():
        asked = tyro.cli(Arguments, config=(tyro.conf.OmitArgPrefixes,))
        ranks = start(asked.device)
        if asked.watch is not None:
            request = WatchRequest(
                asked.watch, asked.tasks, asked.task, asked.items_out, asked.idle_minutes
            )
            log.info("%s", watch(request, ranks))
        elif asked.checkpoint is not None:
            outputs = Outputs(asked.json, asked.items_out)
            evaluate(asked.checkpoint, asked.tasks, asked.task, outputs, ranks)
    stop()


if __name__ == "__main__":
    main()
