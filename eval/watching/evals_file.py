"""Reads and writes `evals.jsonl`, where a watcher records one line for each evaluation.

A line: {"step": 500, "val/loss": 3.9, ..., "tasks": "val_loss hellaswag", "options": "items=100",
"weights": "9f86d081..."}, where `weights` is their sha256. A run that resumed from an older
checkpoint may repeat a step and reach other weights; of two lines for one step the later counts.
"""

import fcntl
import logging
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from eval.subject import EvalOptions
from eval.watching.live_run import UNKNOWN_DIGEST
from storage.json_lines import read_every_line
from storage.locks import take_lock
from storage.metrics import JsonLinesWriter, Metrics

log = logging.getLogger(__name__)


class EvalsFile:
    """The evaluations of a run on disk, and which tasks they cover.

    A task is not measured again if a line with the same options and weights has it.
    """

    def __init__(self, path: Path, options: EvalOptions) -> None:
        """Lock the file until `close`, drop a torn last line and read the others.

        Raises: ValueError if another process has the lock, or a line is not an evaluation.
        """
        self.path = path
        self.options = _option_changes(options)
        self._measured: dict[int, dict[str, set[str]]] = {}
        """Names of tasks by step and weights."""
        self._lines = JsonLinesWriter(path)
        try:
            self._lock()
            _drop_torn_line(path)
            for number, line in enumerate(read_every_line(path), start=1):
                self._load(number, line)
        except ValueError:
            self._lines.close()
            raise

    def _lock(self) -> None:
        try:
            take_lock(self._lines.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another process that watches this run; "
                "stop it, or give all tasks to one of the two"
            ) from error

    def _load(self, number: int, line: dict[str, Any] | None) -> None:
        try:
            if line is None:
                raise ValueError("it is damaged")
            step, options, tasks = line["step"], line["options"], line["tasks"].split()
            weights = line.get("weights", UNKNOWN_DIGEST)  # early versions wrote no digest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} line {number} is no evaluation ({error!r}); remove that line"
            ) from error
        if options == self.options:
            self._add_tasks(step, weights, tasks)

    def _add_tasks(self, step: int, weights: str, tasks: Iterable[str]) -> None:
        self._measured.setdefault(step, {}).setdefault(weights, set()).update(tasks)

    def not_measured(self, step: int, weights: str, tasks: Iterable[str]) -> tuple[str, ...]:
        """Those of `tasks` that were not yet measured at `step` on these weights."""
        by_weights = self._measured.get(step, {})
        done = set().union(*(by_weights[w] for w in by_weights if _may_be_same(w, weights)))
        return tuple(name for name in tasks if name not in done)

    def has_other_weights(self, step: int, weights: str) -> bool:
        """Whether `step` was measured, but only on other weights."""
        by_weights = self._measured.get(step, {})
        return bool(by_weights) and not any(_may_be_same(w, weights) for w in by_weights)

    def add(self, step: int, weights: str, tasks: Iterable[str], tags: dict[str, float]) -> None:
        """Append the results of `tasks` at `step`; after this a power cut does not lose them."""
        names = " ".join(tasks)
        line: Metrics = {**tags, "tasks": names, "options": self.options, "weights": weights}
        self._lines.write(step, line)
        os.fsync(self._lines.file.fileno())  # a line may be hours of work
        self._add_tasks(step, weights, names.split())

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._lines.close()


def _may_be_same(one: str, other: str) -> bool:
    """Whether two digests are equal, or one of them is unknown."""
    return one == other or UNKNOWN_DIGEST in (one, other)


def _option_changes(options: EvalOptions) -> str:
    """The options that differ from their defaults, as `name=value name=value`."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return " ".join(
        f"{field.name}={_as_text(values[field.name])}"
        for field in fields(options)
        if values[field.name] != field.default
    )


def _as_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without a line end, which a killed watcher may leave; warn about it."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        log.warning("%s: the last line was cut short; it is dropped and measured again", path)
        os.truncate(path, complete)
