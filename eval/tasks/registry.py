"""All evaluation tasks by name, and the functions that run them on a model.

To add a task, write one file in this folder and add one line to TASKS. The file has a function
that takes a Subject and EvalOptions and returns a TaskResult; pydoc_choice.py is the shortest
example. Every rank calls it, and it returns the same result on every rank. If the task reads data
from outside, the line also names its ItemSource (as lambada.py has one): then --task-file works,
and missing data is reported before any task runs. Everything else takes the names from here.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from eval.result import TaskResult
from eval.subject import DataUnavailable, EvalOptions, Subject, evaluating
from eval.tasks.hellaswag import HELLASWAG, hellaswag
from eval.tasks.items import ItemSource, read_examples, read_items
from eval.tasks.lambada import LAMBADA, lambada
from eval.tasks.mixture_loss import UNPADDED, val_loss, validation_data
from eval.tasks.pydoc_choice import pydoc_choice
from eval.tasks.questions import ARC_EASY, OPENBOOKQA, PIQA, question_task
from eval.tasks.wikitext import WIKITEXT, wikitext

_T = TypeVar("_T")


@dataclass(frozen=True)
class EvalTask:
    """A task and the data that it reads."""

    run: Callable[[Subject, EvalOptions], TaskResult]
    data: ItemSource[Any] | Callable[[Subject, EvalOptions], object] | None = None
    """The items, or a function that opens the data; None if the task always has its data."""

    def open_data(self, subject: Subject, options: EvalOptions) -> None:
        """Read what the task reads, without running it. Raises: ValueError if that fails."""
        if isinstance(self.data, ItemSource):
            if options.few_shot and self.data.examples is not None:
                read_examples(self.data, subject, options)
            read_items(self.data, subject, options)
        elif self.data is not None:
            self.data(subject, options)


TASKS: dict[str, EvalTask] = {
    "val_loss": EvalTask(val_loss, validation_data),
    UNPADDED: EvalTask(partial(val_loss, padded=False), validation_data),
    "hellaswag": EvalTask(hellaswag, HELLASWAG),
    "pydoc_choice": EvalTask(pydoc_choice),
    "lambada": EvalTask(lambada, LAMBADA),
    "piqa": EvalTask(partial(question_task, PIQA), PIQA),
    "arc_easy": EvalTask(partial(question_task, ARC_EASY), ARC_EASY),
    "openbookqa": EvalTask(partial(question_task, OPENBOOKQA), OPENBOOKQA),
    "wikitext": EvalTask(wikitext, WIKITEXT),
}

log = logging.getLogger(__name__)
_reported: set[str] = set()  # tasks whose missing data this process has already logged


def check_tasks(names: Sequence[str]) -> None:
    """Raises: ValueError if one of the names is not a task."""
    for name in names:
        if name not in TASKS:
            raise ValueError(f"there is no task {name}; the tasks are {', '.join(TASKS)}")


def run_tasks(subject: Subject, options: EvalOptions, names: Sequence[str]) -> dict[str, float]:
    """Run the named tasks and return their numbers by tag. Raises: ValueError if one fails."""
    found = measure(subject, options, names)
    raise_failures(found)
    return found.tags


def raise_failures(found: TaskResult) -> None:
    """Raises: ValueError naming the tasks that failed, if some did."""
    if found.failures:
        raise ValueError("; ".join(f"{task}: {why}" for task, why in found.failures.items()))


def measure(subject: Subject, options: EvalOptions, names: Sequence[str]) -> TaskResult:
    """Run the named tasks and return their results as one.

    A task without its data is skipped with a warning, once per process. One that fails, on every
    rank alike, is in the result's `failures` and costs the others nothing.
    Raises: ValueError for an unknown name, or if the data of a task is bad.
    """
    check_tasks([*names, *options.files, *options.example_files])
    # Open all data first, so that a bad file is reported before the first task takes its time.
    unavailable = unavailable_tasks(subject, options, names)
    results = TaskResult({})
    with evaluating(subject.model):
        for name in names:
            if name in unavailable:
                continue
            try:
                found = _or_none(name, lambda task: task.run(subject, options))
            except ValueError as error:
                results.failures[name] = str(error)
                continue
            if found is not None:
                results.tags.update(found.tags)
                results.items.update(found.items)
    return results


def unavailable_tasks(subject: Subject, options: EvalOptions, names: Sequence[str]) -> list[str]:
    """Names of the tasks whose data is unavailable. The data of the others stays in memory.

    Raises: ValueError if the data of a task is bad.
    """

    def is_open(task: EvalTask) -> bool:
        task.open_data(subject, options)
        return True

    return [name for name in names if _or_none(name, is_open) is None]


def _or_none(name: str, call: Callable[[EvalTask], _T]) -> _T | None:
    """The result of `call` for a task; None and (once) a warning if its data is unavailable."""
    try:
        return call(TASKS[name])
    except DataUnavailable as reason:
        if name not in _reported:
            log.warning("%s is left out: %s", name, reason)
            _reported.add(name)
        return None
