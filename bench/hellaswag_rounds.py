"""What ways of scoring took and found, round by round: kept on disk until all rounds are done.

Round k of n has the items k, k + n, k + 2n and so on, so that the rounds are alike.
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

from bench.hellaswag_ways import Way
from eval.scoring.multiple_choice import Item
from eval.subject import Subject, evaluating
from storage.atomic import new_file

SETTINGS = "settings"  # the array's name; the others bear a way's and a field's
FIELDS = ("seconds", "cpu_seconds", "nats")

log = logging.getLogger("eval")


@dataclass
class Timed:
    """What one way took, by round, and what it found."""

    way: Way
    seconds: np.ndarray
    cpu_seconds: np.ndarray
    """User and system time of all threads."""
    nats: np.ndarray
    """Of every ending; NaN in rounds to come. Shape (items, 4)."""


class Rounds:
    """The rounds of all ways over the items, and the file they are kept in."""

    def __init__(self, file: Path, settings: dict[str, Any], count: int) -> None:
        """`settings` are what the figures depend on: a file of other ones is not taken up."""
        self.file = file
        self.settings = json.dumps(settings, sort_keys=True)
        self.count = count
        self.done = 0
        self.runs: list[Timed] = []

    def take_up(self, ways: Sequence[Way], items: int, endings: int = 4) -> None:
        """What an interrupted call with the same settings left, or nothing yet."""
        left: dict[str, np.ndarray] = {}
        if self.file.exists():
            with np.load(self.file, allow_pickle=False) as found:
                left = dict(found)
            if left.get(SETTINGS) != self.settings:
                raise ValueError(
                    f"{self.file} holds rounds of other settings: {left.get(SETTINGS)}, not "
                    f"{self.settings}; delete it or give another --out"
                )
        empty = {name: np.zeros(0) for name in FIELDS} | {"nats": np.full((items, endings), np.nan)}
        self.runs = [
            Timed(way, *(left.get(f"{way.name}_{name}", empty[name]) for name in FIELDS))
            for way in ways
        ]
        self.done = len(self.runs[0].seconds)
        if self.done:
            log.info("going on after round %d of %d of %s", self.done, self.count, self.file)

    def keep(self) -> None:
        """Write all of it, whole or not at all."""
        arrays: dict[str, Any] = {SETTINGS: np.array(self.settings)}
        for run in self.runs:
            arrays |= {f"{run.way.name}_{name}": getattr(run, name) for name in FIELDS}
        with new_file(self.file) as aside, aside.open("wb") as file:
            np.savez(file, **arrays)

    def finished(self) -> list[Timed]:
        """The runs, with the nats of the finished rounds only."""
        places = self.places(len(self.runs[0].nats))
        return [replace(run, nats=run.nats[places]) for run in self.runs]

    def places(self, items: int) -> np.ndarray:
        """The items of the finished rounds. Shape (items done,)."""
        return np.flatnonzero(np.arange(items) % self.count < self.done)

    def measured(self, subject: Subject, items: dict[str, list[Item]]) -> Iterator[int]:
        """Score round after round, every way by turns; yields how many are done and kept.

        The order changes from round to round, so that a slow moment hits no way more. The file is
        removed when the caller has used the last round.
        """
        with evaluating(subject.model):
            for run in self.runs:
                run.way.score(items[run.way.style][:4])  # the first pass allocates
            if self.done:
                yield self.done
            for number in range(self.done, self.count):
                for run in self.runs[:: 1 if number % 2 else -1]:
                    part = items[run.way.style][number :: self.count]
                    run.nats[number :: self.count] = self._score(run, subject.ranks.device, part)
                self.done += 1
                self.keep()
                yield self.done
        self.file.unlink()

    def _score(self, run: Timed, device: torch.device, items: list[Item]) -> np.ndarray:
        took, cpu, found = timed(device, lambda: run.way.score(items))
        run.seconds, run.cpu_seconds = np.append(run.seconds, took), np.append(run.cpu_seconds, cpu)
        log.info("round %d of %d: %s %.1f s", self.done + 1, self.count, run.way.name, took)
        return found


def timed(device: torch.device, work: Callable[[], np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Seconds and CPU seconds that `work` takes, and what it gives."""

    def now() -> np.ndarray:
        if device.type == "cuda":
            torch.cuda.synchronize()
        used = resource.getrusage(resource.RUSAGE_SELF)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    begin = now()
    found = work()
    seconds, cpu_seconds = (now() - begin).tolist()
    return seconds, cpu_seconds, found
