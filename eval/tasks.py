"""The tasks by name, and running some of them on a model.

A task takes a Subject and EvalOptions and returns numbers by tag; every rank calls it and every
rank gets the same numbers.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from eval.hellaswag import hellaswag, hellaswag_items
from eval.pydoc_choice import pydoc_choice
from eval.subject import DataUnavailable, EvalOptions, Subject, evaluating
from eval.val_loss import val_loss, validation_shards

EvalTask = Callable[[Subject, EvalOptions], dict[str, float]]

TASKS: dict[str, EvalTask] = {
    "val_loss": val_loss,
    "hellaswag": hellaswag,
    "pydoc_choice": pydoc_choice,
}
# What tasks read from outside, opened for all of them before the first one costs any time.
INPUTS: dict[str, Callable[[Subject, EvalOptions], object]] = {
    "val_loss": validation_shards,
    "hellaswag": hellaswag_items,
}

T = TypeVar("T")
log = logging.getLogger(__name__)
_reported: set[str] = set()


def check_tasks(names: Sequence[str]) -> None:
    """Raises: ValueError for a name that is no task."""
    for name in names:
        if name not in TASKS:
            raise ValueError(f"there is no task {name}; the tasks are {', '.join(TASKS)}")


def run_tasks(subject: Subject, options: EvalOptions, names: Sequence[str]) -> dict[str, float]:
    """The tags of all named tasks. A task whose data cannot be had is left out.

    That is said once per process, by a warning. Raises: ValueError for an unknown name, or what a
    task finds wrong.
    """
    check_tasks(names)
    reading = [name for name in names if name in INPUTS]
    absent = [name for name in reading if _had(name, INPUTS, subject, options) is None]
    results: dict[str, float] = {}
    with evaluating(subject.model):
        for name in names:
            if name not in absent:
                results |= _had(name, TASKS, subject, options) or {}
    return results


def _had(
    name: str,
    table: Mapping[str, Callable[[Subject, EvalOptions], T]],
    subject: Subject,
    options: EvalOptions,
) -> T | None:
    """What the table's function gives; None, and a warning once per process, without its data."""
    try:
        return table[name](subject, options)
    except DataUnavailable as reason:
        if name not in _reported:
            log.warning("%s is left out: %s", name, reason)
            _reported.add(name)
        return None
