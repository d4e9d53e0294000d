"""Evaluates one checkpoint: a table of numbers on the console, and in files if they are wanted."""

import logging
from dataclasses import dataclass
from pathlib import Path

from eval.subject import EvalOptions, load_subject, options_of
from eval.tasks import measure
from parallel.ranks import Ranks
from storage.atomic import write_json

DEFAULT_TASKS = ("hellaswag", "val_loss")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """The files to write."""

    numbers: Path | None = None
    """JSON, by tag."""
    items: Path | None = None
    """Folder for what became of each item."""


def evaluate(
    checkpoint: Path,
    tasks: tuple[str, ...],
    options: EvalOptions,
    outputs: Outputs,
    ranks: Ranks,
) -> None:
    """Load, measure (without `tasks` DEFAULT_TASKS), report.

    Raises: ValueError if the checkpoint cannot be used, or none of the tasks run.
    """
    subject = load_subject(checkpoint, ranks)
    tasks = tasks or DEFAULT_TASKS
    found = measure(subject, options_of(checkpoint, options), tasks)
    if not found.tags:
        raise ValueError(f"none of the tasks {', '.join(tasks)} could be run; see above")
    width = max(map(len, found.tags))
    log.info("%s", "\n".join(f"{tag:{width}}  {value:.6g}" for tag, value in found.tags.items()))
    if outputs.numbers is not None and ranks.is_main:
        write_json(outputs.numbers, found.tags)
    if outputs.items is not None and ranks.is_main:
        found.save_items(outputs.items)
