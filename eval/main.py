"""Evaluate a checkpoint: the same tasks and numbers as during training.

    python eval/main.py --checkpoint runs/gpt2/checkpoints/latest --tasks hellaswag val_loss

Alone or under torchrun. Prints a table; `--json FILE` writes the same numbers by tag, and
`--items-out FOLDER` what became of each item, for eval/compare.py.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from eval.subject import EvalOptions, load_subject, options_of
from eval.tasks import check_tasks, measure
from parallel.ranks import quiet_other_ranks, start, stop, user_errors
from storage.atomic import write_json

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Evaluate a checkpoint."""

    checkpoint: Path
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    tasks: tuple[str, ...] = ("hellaswag", "val_loss")
    """What to measure: hellaswag, val_loss, lambada, piqa, arc_easy, openbookqa, wikitext,
    pydoc_choice."""
    json: Path | None = None
    """File to write the numbers to, by tag."""
    items_out: Path | None = None
    """Folder for what became of each item, one .npz a task."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    task: EvalOptions = EvalOptions()
    """How tasks are run."""

    def __post_init__(self) -> None:
        check_tasks([*self.tasks, *self.task.files])


def main() -> None:
    """Load, run, report."""
    quiet_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, config=(tyro.conf.OmitArgPrefixes,))
        ranks = start(arguments.device)
        subject = load_subject(arguments.checkpoint, ranks)
        options = options_of(arguments.checkpoint, arguments.task)
        found = measure(subject, options, arguments.tasks)
        results = found.tags
        if not results:
            raise ValueError(
                f"none of the tasks {', '.join(arguments.tasks)} could be run; see above"
            )
        width = max(map(len, results))
        log.info("%s", "\n".join(f"{tag:{width}}  {value:.6g}" for tag, value in results.items()))
        if arguments.json is not None and ranks.is_main:
            write_json(arguments.json, results)
        if arguments.items_out is not None and ranks.is_main:
            for name, table in found.items.items():
                table.save(arguments.items_out / f"{name}.npz", name)
    stop()


if __name__ == "__main__":
    main()
