"""Reads and writes `evals.jsonl`, where a watcher records one line for each evaluation.

A line: {"step": 500, "val/loss": 3.9, ..., "tasks": "val_loss hellaswag", "options": "items=100",
"weights": "9f86d081..."}, where `weights` is their sha256. A run that resumed from an older
checkpoint may repeat a step and reach other weights; of two lines for one step the later counts.
"""

import logging
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

from eval.subject import EvalOptions
from eval.watching.live_run import UNKNOWN_DIGEST
from storage.atomic import sync_file
from storage.json_lines import is_count, open_to_append, read_every_line
from storage.locks import take_lock
from storage.metrics import JsonLinesWriter, MetricLog, Metrics
from storage.system_modules import FCNTL as fcntl

_LINES_NAMED = 5
log = logging.getLogger(__name__)


class EvalsFile:
    """The evaluations of a run on disk, and which tasks they cover.

    A task is not measured again if a line with the same options and weights has it.
    """

    def __init__(self, path: Path, options: EvalOptions) -> None:
        """Lock the file until `close`, and read it. A damaged line is skipped with a warning.

        Raises: ValueError if another process has the lock, or the file cannot be read.
        """
        self.path = path
        self.options = _option_changes(options)
        self._measured: dict[int, dict[str, set[str]]] = {}
        """Names of tasks by step and weights."""
        self._lines = MetricLog([_SyncedLines(path)])
        self._locked = _opened(path)
        try:
            self._lock()
            damaged = [n for n, line in enumerate(read_every_line(path), 1) if not self._load(line)]
        except BaseException:
            self._locked.close()
            raise
        if damaged:
            log.warning(
                "%s: line %s is no evaluation and is skipped; what it recorded is measured again",
                *(path, " and line ".join(map(str, damaged[:_LINES_NAMED]))),
            )

    def _lock(self) -> None:
        try:
            take_lock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{self.path} is being written by another process that watches this run; "
                "stop it, or give all tasks to one of the two"
            ) from error

    def _load(self, line: dict[str, Any] | None) -> bool:
        """Take what a line records; False if it is no evaluation."""
        if line is None:
            return False
        step, options, tasks = line.get("step"), line.get("options"), line.get("tasks")
        weights = line.get("weights", UNKNOWN_DIGEST)  # early versions wrote no digest
        if not is_count(step) or not all(isinstance(x, str) for x in (options, tasks, weights)):
            return False
        if options == self.options:
            self._add_tasks(step, weights, str(tasks).split())
        return True

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
        self._add_tasks(step, weights, names.split())

    def retry(self) -> None:
        """Write what a full disk has not taken so far."""
        self._lines.flush()

    def close(self) -> None:
        """Write what is left and close the file, which releases the lock.

        Raises: ValueError if evaluations could not be written and are lost.
        """
        self._lines.close()
        self._locked.close()
        if self._lines.failing():
            raise ValueError(
                f"{self.path} cannot be written, so the last evaluations are lost; watch the run "
                "again once its disk has room: what is not recorded is measured again"
            )


class _SyncedLines(JsonLinesWriter):
    """Lines that a power cut does not lose, since a line may be hours of work."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Append a line and wait until it is on the disk."""
        super().write(step, metrics)
        sync_file(self.path)


def _opened(path: Path) -> IO[bytes]:
    try:
        return open_to_append(path)
    except OSError as error:
        raise ValueError(f"{error}; a watch records its evaluations there") from error


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
