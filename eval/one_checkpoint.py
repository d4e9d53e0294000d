"""Evaluates one checkpoint: prints a table of numbers and writes files on request."""

import logging
from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.order.weights import folders_and_weights
from eval.subject import EvalOptions, find_on_ranks, subject_of, with_checkpoint_defaults
from eval.tasks.registry import measure, raise_failures
from parallel.collectives import broadcast_object
from parallel.ranks import Ranks
from storage.metrics import as_json
from storage.terminal.json_output import write_json_target

DEFAULT_TASKS = ("hellaswag", "val_loss")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """The files to write; None: do not write."""

    numbers: Path | None = None
    """JSON file with the numbers by tag; -: standard output."""
    items: Path | None = None
    """Folder for per-item results."""


def default_tasks(own_data: tuple[Path, ...]) -> tuple[str, ...]:
    """DEFAULT_TASKS, without val_loss if the data set of the training run is not available."""
    folders = [place.folder for place in folders_and_weights(own_data)] if own_data else []
    missing = [folder for folder in folders if not (folder / MANIFEST_NAME).is_file()]
    if folders and not missing:
        return DEFAULT_TASKS
    reason = f"no data in {missing[0]}" if missing else "the checkpoint names no data set"
    log.info("val_loss is left out (%s); give a data set with --data", reason)
    return tuple(task for task in DEFAULT_TASKS if task != "val_loss")


def evaluate_checkpoint(
    checkpoint: Path,
    tasks: tuple[str, ...],
    options: EvalOptions,
    outputs: Outputs,
    ranks: Ranks,
) -> None:
    """Load a checkpoint, run tasks and report. No `tasks`: those of `default_tasks`.

    `checkpoint`: whatever `find_checkpoint` accepts.

    Raises: ValueError if the checkpoint cannot be loaded, no task could run, or, after the results
    of the others are written, if one failed.
    """
    checkpoint = find_on_ranks(checkpoint, ranks)
    subject = subject_of(checkpoint, ranks)
    given, options = options.data, with_checkpoint_defaults(checkpoint, options)
    if not tasks:
        tasks = broadcast_object(DEFAULT_TASKS if given else default_tasks(options.data))
    found = measure(subject, options, tasks)
    if not found.tags and not found.failures:
        raise ValueError(f"none of the tasks {', '.join(tasks)} could be run; see above")
    if found.tags:
        width = max(map(len, found.tags))
        rows = (f"{tag:{width}}  {value:.6g}" for tag, value in found.tags.items())
        log.info("%s", "\n".join(rows))
        if ranks.is_main:
            write_json_target(outputs.numbers, as_json(found.tags))
        if outputs.items is not None and ranks.is_main:
            found.save_items(outputs.items)
    raise_failures(found)
