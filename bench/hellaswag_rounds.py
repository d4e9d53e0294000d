"""Times and losses of scoring methods by round, in a file from which a call can resume.

Round k of n has the items k, k + n, k + 2n and so on, so that all rounds have similar items. The
file is removed after the last round.
"""

import json
import logging
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.hellaswag_methods import Method
from eval.scoring.multiple_choice import Item
from eval.subject import Subject, evaluating
from storage.atomic import new_file

_SETTINGS = "settings"  # name of an array in the file; the others are called METHOD_FIELD
_FIELDS = ("seconds", "cpu_seconds", "nats")

log = logging.getLogger("eval")


@dataclass
class Timed:
    """The times of one method, one for each finished round, and its losses."""

    method: Method
    seconds: np.ndarray
    cpu_seconds: np.ndarray
    """User and system time of all threads."""
    nats: np.ndarray
    """The loss of every ending; NaN in unfinished rounds. Shape (items, 4)."""


class Rounds:
    """The rounds of all methods over the items, and the file that has the finished ones."""

    def __init__(self, file: Path, settings: dict[str, Any], count: int) -> None:
        """`settings` is what the figures depend on. A file with other settings is not continued."""
        self.file = file
        self.settings = json.dumps(settings, sort_keys=True)
        self.count = count
        self.done = 0
        self.runs: list[Timed] = []

    def load(self, methods: Sequence[Method], items: int, endings: int = 4) -> None:
        """Read the rounds that an interrupted call has finished, or start without any.

        Raises: ValueError if the file has other settings.
        """
        left: dict[str, np.ndarray] = {}
        if self.file.exists():
            with np.load(self.file, allow_pickle=False) as found:
                left = dict(found)
            if left.get(_SETTINGS) != self.settings:
                raise ValueError(
                    f"{self.file} has rounds of other settings: {left.get(_SETTINGS)}, not "
                    f"{self.settings}; delete it or give another --out"
                )
        empty = {name: np.zeros(0) for name in _FIELDS} | {
            "nats": np.full((items, endings), np.nan)
        }
        self.runs = [
            Timed(method, *(left.get(f"{method.name}_{name}", empty[name]) for name in _FIELDS))
            for method in methods
        ]
        self.done = len(self.runs[0].seconds)
        if self.done:
            log.info("continuing after round %d of %d in %s", self.done, self.count, self.file)

    def save(self) -> None:
        """Write all finished rounds atomically."""
        arrays: dict[str, Any] = {_SETTINGS: np.array(self.settings)}
        for run in self.runs:
            arrays |= {f"{run.method.name}_{name}": getattr(run, name) for name in _FIELDS}
        with new_file(self.file) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def finished(self) -> list[Timed]:
        """The times of all methods, with the losses of the finished rounds only."""
        indices = self.finished_items(len(self.runs[0].nats))
        return [replace(run, nats=run.nats[indices]) for run in self.runs]

    def finished_items(self, items: int) -> np.ndarray:
        """Indices of the items of the finished rounds. Shape (items done,)."""
        return np.flatnonzero(np.arange(items) % self.count < self.done)

    def measure(self, subject: Subject, items: dict[str, list[Item]]) -> Iterator[int]:
        """Score the remaining rounds with all methods; yields the number of finished rounds.

        The order of the methods changes from round to round, so that a slow period of the machine
        affects all of them. The file is removed when the caller has used the last round.
        """
        with evaluating(subject.model):
            for run in self.runs:
                run.method.score(items[run.method.style][:4])  # the first pass allocates memory
            if self.done:
                yield self.done
            for number in range(self.done, self.count):
                for run in self.runs[:: 1 if number % 2 else -1]:
                    part = items[run.method.style][number :: self.count]
                    run.nats[number :: self.count] = self._score(run, subject.ranks.device, part)
                self.done += 1
                self.save()
                yield self.done
        self.file.unlink()

    def _score(self, run: Timed, device: torch.device, items: list[Item]) -> np.ndarray:
        took, cpu, found = _timed(device, lambda: run.method.score(items))
        run.seconds, run.cpu_seconds = np.append(run.seconds, took), np.append(run.cpu_seconds, cpu)
        log.info("round %d of %d: %s %.1f s", self.done + 1, self.count, run.method.name, took)
        return found


def _timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds and CPU seconds that `work` takes, and its result."""

    def now() -> np.ndarray:
        if device.type == "cuda":
            torch.cuda.synchronize()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    begin = now()
    found = work()
    seconds, cpu_seconds = (now() - begin).tolist()
    return seconds, cpu_seconds, found
