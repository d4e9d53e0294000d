"""The tasks by name, and running some of them on a model.

A task takes a Subject and EvalOptions and returns numbers by tag, and what became of each item;
every rank calls it and every rank gets the same.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from eval.result import TaskResult
from eval.subject import DataUnavailable, EvalOptions, Subject, evaluating
from eval.tasks.hellaswag import HELLASWAG, hellaswag
from eval.tasks.items import ItemSource, read_examples, read_items
from eval.tasks.lambada import LAMBADA, lambada
from eval.tasks.pydoc_choice import pydoc_choice
from eval.tasks.questions import QUESTIONS, question_task
from eval.tasks.val_loss import val_loss, validation_shards
from eval.tasks.wikitext import WIKITEXT, wikitext

EvalTask = Callable[[Subject, EvalOptions], TaskResult]

TASKS: dict[str, EvalTask] = {
    "val_loss": val_loss,
    "hellaswag": hellaswag,
    "pydoc_choice": pydoc_choice,
    "lambada": lambada,
    "piqa": partial(question_task, QUESTIONS["piqa"]),
    "arc_easy": partial(question_task, QUESTIONS["arc_easy"]),
    "openbookqa": partial(question_task, QUESTIONS["openbookqa"]),
    "wikitext": wikitext,
}
SOURCES: tuple[ItemSource[Any], ...] = (HELLASWAG, LAMBADA, WIKITEXT, *QUESTIONS.values())


def _read(source: ItemSource[Any], subject: Subject, options: EvalOptions) -> object:
    if options.few_shot and source.examples is not None:
        read_examples(source, subject, options)
    return read_items(source, subject, options)


# What tasks read from outside, opened for all of them before the first one costs any time.
INPUTS: dict[str, Callable[[Subject, EvalOptions], object]] = {
    "val_loss": validation_shards,
    **{source.task: partial(_read, source) for source in SOURCES},
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
    """The tags of all named tasks, as `measure` finds them."""
    return measure(subject, options, names).tags


def measure(subject: Subject, options: EvalOptions, names: Sequence[str]) -> TaskResult:
    """What all named tasks find, as one result. A task whose data cannot be had is left out.

    That is said once per process, by a warning. Raises: ValueError for an unknown name, or what a
    task finds wrong.
    """
    check_tasks([*names, *options.files, *options.example_files])
    absent = unavailable_tasks(subject, options, names)
    results = TaskResult({})
    with evaluating(subject.model):
        for name in names:
            found = None if name in absent else _is_available(name, TASKS, subject, options)
            if found is not None:
                results.tags.update(found.tags)
                results.items.update(found.items)
    return results


def unavailable_tasks(subject: Subject, options: EvalOptions, names: Sequence[str]) -> list[str]:
    """Those of the tasks whose data cannot be had; the data of the others are open now.

    Raises: ValueError for what a task lacks otherwise.
    """
    reading = [name for name in names if name in INPUTS]
    return [name for name in reading if _is_available(name, INPUTS, subject, options) is None]


def _is_available(
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
