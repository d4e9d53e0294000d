"""Evaluates one checkpoint, or every checkpoint of a training run as it appears (`--watch`).

    python eval/main.py --checkpoint runs/gpt2 --tasks hellaswag val_loss
    python eval/main.py --watch runs/gpt2 --tasks hellaswag val_loss

Runs on one process or under torchrun. Tasks and numbers are the same as during training. Prints a
table; `--json FILE` writes the numbers by tag, `--items-out FOLDER` the result of each item for
eval/compare.py. A watch writes to the run's `tensorboard/eval/` and `evals.jsonl` and ends when
the run does. If it was stopped, the same command continues it.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_prep.order.weights import check_one_mixture
from eval.one_checkpoint import DEFAULT_TASKS, Outputs, evaluate_checkpoint
from eval.subject import EvalOptions
from eval.tasks.registry import TASKS, check_tasks
from eval.watching.watch import WatchRequest, watch
from parallel.ranks import silence_other_ranks, start, stop, user_errors
from storage.option_values import check_output_file
from storage.script_options import parse_options
from storage.terminal.json_output import check_json_target

log = logging.getLogger("eval")

_TASKS_HELP = (
    f"Names of tasks: {', '.join(TASKS)}. Default: {' and '.join(DEFAULT_TASKS)}; with --watch "
    "val_loss and the tasks of the run."
)


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint, or each checkpoint of a run as it appears."""

    checkpoint: Path | None = None
    """Folder of a run (its newest sound checkpoint) or of a checkpoint; or a
    model of Hugging Face, as a folder or an id of its Hub, which is imported once."""
    watch: Path | None = None
    """Run folder, such as runs/gpt2. Evaluates each checkpoint once, until the run ends."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help=_TASKS_HELP)] = ()
    json: Path | None = None
    """JSON file to write the numbers to, by tag; -: standard output."""
    items_out: Path | None = None
    """Folder for per-item results: one .npz per task; with --watch, one sub-folder per step."""
    idle_minutes: float | None = None
    """Stop watching after this many minutes without a change in the run folder.
    Default: stop when the run has finished or failed; wait if it was preempted or died."""
    device: str = "auto"
    """auto, cpu or cuda; auto uses CUDA if it is available."""
    task: EvalOptions = EvalOptions()
    """How tasks run."""

    def __post_init__(self) -> None:
        check_tasks([*self.tasks, *self.task.files])
        if (self.checkpoint is None) == (self.watch is None):
            raise ValueError("give one of --checkpoint FOLDER and --watch RUN")
        if self.watch is not None and self.json is not None:
            raise ValueError(f"--json cannot be used with --watch; read {self.watch}/evals.jsonl")
        check_json_target(self.json)


def main() -> None:
    """Parse the options; evaluate one checkpoint, or watch a run until it ends."""
    silence_other_ranks()
    with user_errors():
        options = parse_options(Arguments, prefixed=False)
        check_one_mixture(sys.argv[1:])
        if options.items_out is not None:
            check_output_file("--items-out", options.items_out / "items.npz")
        ranks = start(options.device)
        if options.watch is not None:
            if options.watch.exists() and not options.watch.is_dir():
                raise ValueError(f"--watch {options.watch} is no folder; give a run's folder")
            request = WatchRequest(
                options.watch,
                options.tasks,
                options.task,
                options.items_out,
                options.idle_minutes,
            )
            log.info("%s", watch(request, ranks))
        elif options.checkpoint is not None:
            outputs = Outputs(options.json, options.items_out)
            evaluate_checkpoint(options.checkpoint, options.tasks, options.task, outputs, ranks)
    stop()


if __name__ == "__main__":
    main()
