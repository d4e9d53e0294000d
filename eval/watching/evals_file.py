"""`evals.jsonl` of a run: what a watcher has measured, one line an evaluation, its only writer.

{"step": 500, "val/loss": 3.9, ..., "tasks": "val_loss hellaswag", "options": "items=100",
"weights": "9f86d081..."}: the sha256 of what was measured. A run that went back may take a step
anew and arrive at other weights; of two lines for a step the later counts.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from eval.subject import EvalOptions
from eval.watching.live_run import UNKNOWN
from storage.locks import take_lock
from storage.metrics import JsonLinesWriter, Metrics

log = logging.getLogger(__name__)


class EvalsFile:
    """The evaluations of a run on disk.

    What stands there with the same options, of the same weights, is not redone.
    """

    def __init__(self, path: Path, options: EvalOptions) -> None:
        """Become the file's only writer until `close`, and drop a last line that was cut short.

        Raises: ValueError if another process writes it, or a line is none of ours.
        """
        self.path = path
        self.options = option_changes(options)
        self._done: dict[int, dict[str, set[str]]] = {}
        """The tasks by step and weights."""
        self._lines = JsonLinesWriter(path)
        try:
            self._lock()
            for number, line in enumerate(_complete_lines(path), start=1):
                self._note(number, line)
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

    def _note(self, number: int, line: bytes) -> None:
        try:
            found = json.loads(line)
            step, options, tasks = found["step"], found["options"], found["tasks"].split()
            weights = found.get("weights", UNKNOWN)  # lines of before had none
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path} line {number} is no evaluation ({error!r}); remove that line"
            ) from error
        if options == self.options:
            self._remember(step, weights, tasks)

    def _remember(self, step: int, weights: str, tasks: Iterable[str]) -> None:
        self._done.setdefault(step, {}).setdefault(weights, set()).update(tasks)

    def missing(self, step: int, weights: str, tasks: Iterable[str]) -> tuple[str, ...]:
        """Those of `tasks` that were not measured at `step` on these weights yet."""
        measured = self._done.get(step, {})
        done = set().union(*(measured[of] for of in measured if _may_be_equal(of, weights)))
        return tuple(name for name in tasks if name not in done)

    def replaced(self, step: int, weights: str) -> bool:
        """Whether what was measured at `step` was measured on other weights."""
        measured = self._done.get(step, {})
        return bool(measured) and not any(_may_be_equal(of, weights) for of in measured)

    def add(self, step: int, weights: str, tasks: Iterable[str], tags: dict[str, float]) -> None:
        """Append what `tasks` found at `step`; it survives a power cut from here on."""
        names = " ".join(tasks)
        line: Metrics = {**tags, "tasks": names, "options": self.options, "weights": weights}
        self._lines.write(step, line)
        os.fsync(self._lines.file.fileno())
        self._remember(step, weights, names.split())

    def close(self) -> None:
        """Let another process write here."""
        self._lines.close()


def _may_be_equal(one: str, other: str) -> bool:
    """Whether two digests can be of the same weights."""
    return one == other or UNKNOWN in (one, other)


def option_changes(options: EvalOptions) -> str:
    """The options that were given, as name=value; those left at their defaults are not named."""
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    return " ".join(
        f"{f.name}={_plain(given[f.name])}" for f in fields(options) if given[f.name] != f.default
    )


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _complete_lines(path: Path) -> list[bytes]:
    """The lines of the file; what follows the last line's end is cut off."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        log.warning("%s: the last line was cut short; it is dropped and measured again", path)
        os.truncate(path, len(whole))
    return whole.splitlines()
