"""Which source each window of a mixture is from, with exact shares at every window.

After n windows a source of weight w has had c of them, and |c - n w| < 1 for every source and every
n. No assignment can do better than 1 - 1/(2S - 2) for S sources. This one reaches that bound: it is
the algorithm of R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

_LONGEST_PERIOD = 100_000  # windows; of weights with two digits behind the point it is at most 100


def in_windows(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Weights as windows of each source in the shortest period with exactly their shares.

    Raises: ValueError if all are zero, or if the period would be too long.
    """
    total = sum(weights, Fraction(0))
    if total <= 0:
        raise ValueError(f"weights {_text(weights)}: one of them must be more than 0")
    shares = [weight / total for weight in weights]
    period = lcm(*(share.denominator for share in shares))
    if period > _LONGEST_PERIOD:
        raise ValueError(
            f"weights {_text(weights)} are exact only over {period:,} windows, and at most "
            f"{_LONGEST_PERIOD:,} are possible; round them to fewer digits"
        )
    return tuple(int(share * period) for share in shares)


def _text(weights: Sequence[Fraction]) -> str:
    return " ".join(f"{float(weight):g}" for weight in weights)


@dataclass(frozen=True)
class _Period:
    """One period of an assignment, which repeats without end."""

    sources: np.ndarray
    """The source of each window of it. Shapes: (windows,), uint16."""
    places: tuple[np.ndarray, ...]
    """For each source, which windows of it are its own, in order. Shapes: (weight,), int64."""

    def counts(self, windows: int) -> np.ndarray:
        """How many of the first windows are from each source. Shapes: (sources,), int64."""
        periods, rest = divmod(windows, len(self.sources))
        return np.array(
            [periods * len(own) + int(np.searchsorted(own, rest)) for own in self.places], np.int64
        )

    def window(self, source: int, own: int) -> int:
        """The window that is number `own` of a source, both from 0."""
        periods, rest = divmod(own, len(self.places[source]))
        return periods * len(self.sources) + int(self.places[source][rest])


@lru_cache(maxsize=16)
def _period_of(weights: tuple[int, ...]) -> _Period:
    """The assignment of one period for whole weights, which are its windows of each source."""
    period, taking = sum(weights), [i for i, weight in enumerate(weights) if weight]
    chosen = np.empty(period, np.uint16)
    if len(taking) == 1:
        chosen[:] = taking[0]
    else:
        # In units of 1/period, and with the bound's 2S - 2 multiplied out, all is whole numbers.
        slack = 2 * len(taking) - 2
        owed = dict.fromkeys(taking, 0)  # n w - c, times the period
        for window in range(period):
            first, best = -1, (0, 0)
            for i in taking:
                owed[i] += weights[i]
                if owed[i] * slack >= period:
                    # How many windows on, this one included, the source may still wait.
                    latest = -((slack * owed[i] - period * (slack - 1)) // (slack * weights[i]))
                    if first < 0 or (latest, i) < best:
                        first, best = i, (latest, i)
            owed[first] -= period
            chosen[window] = first
    places = tuple(np.flatnonzero(chosen == source) for source in range(len(weights)))
    return _Period(chosen, places)


@lru_cache(maxsize=64)
def _grouped(weights: tuple[int, ...], rest: int, count: int) -> list[tuple[int, int, np.ndarray]]:
    """`Assignment.by_source` for `count` windows of the same weights, from window `rest` on.

    Kept, since steps begin at few places of a short period: eight calls of NumPy fewer in each.
    """
    period = _period_of(weights)
    sources = period.sources[np.arange(rest, rest + count) % len(period.sources)]
    before, found = period.counts(rest), []
    for source in np.unique(sources).tolist():
        rows = np.flatnonzero(sources == source)
        rows.flags.writeable = False
        found.append((source, int(before[source]), rows))
    return found


@dataclass(frozen=True)
class WeightStretch:
    """From a window on, the windows of each source in a period."""

    first_window: int
    weights: tuple[int, ...]


class Assignment:
    """The source of every window of a mixture whose weights may change at some windows.

    A change begins a new count: from there on each share is within one window of its new weight.
    """

    def __init__(self, stretches: Sequence[WeightStretch]) -> None:
        """`stretches` must begin with window 0 and follow one another."""
        self.stretches = tuple(stretches)
        self._firsts = [stretch.first_window for stretch in stretches]
        if self._firsts[:1] != [0] or any(np.diff(self._firsts) <= 0):
            raise ValueError(f"weights begin at the windows {self._firsts}; they must rise from 0")
        self._periods = [_period_of(stretch.weights) for stretch in stretches]
        before = np.zeros(len(stretches[0].weights), np.int64)
        self._before = [before]
        for number, first in enumerate(self._firsts[1:]):
            before = before + self._periods[number].counts(first - self._firsts[number])
            self._before.append(before)

    def sources(self, first: int, count: int) -> np.ndarray:
        """The source of each of the windows [first, first + count). Shapes: (count,), uint16."""
        found = []
        stop = first + count
        while first < stop:
            number = bisect_right(self._firsts, first) - 1
            end = min([stop, *self._firsts[number + 1 : number + 2]])
            period = self._periods[number].sources
            within = np.arange(first - self._firsts[number], end - self._firsts[number])
            found.append(period[within % len(period)])
            first = end
        return np.concatenate([np.empty(0, np.uint16), *found])

    def by_source(self, first: int, count: int) -> list[tuple[int, int, np.ndarray]]:
        """For each source that some of the windows [first, first + count) are from, these three.

        Its number, how many windows before are from it, and which of the windows they are, from 0.
        """
        number = bisect_right(self._firsts, first) - 1
        if self._firsts[number + 1 : number + 2] and first + count > self._firsts[number + 1]:
            sources, before = self.sources(first, count), self.counts(first)
            every = np.unique(sources).tolist()
            return [(one, int(before[one]), np.flatnonzero(sources == one)) for one in every]
        weights = self.stretches[number].weights
        periods, rest = divmod(first - self._firsts[number], len(self._periods[number].sources))
        before = self._before[number]
        return [
            (source, int(before[source]) + periods * weights[source] + own, rows)
            for source, own, rows in _grouped(weights, rest, count)
        ]

    def counts(self, window: int) -> np.ndarray:
        """How many windows before this one are from each source. Shapes: (sources,), int64."""
        number = bisect_right(self._firsts, window) - 1
        return self._before[number] + self._periods[number].counts(window - self._firsts[number])

    def window(self, source: int, own: int) -> int | None:
        """The window of the mixture that is number `own` of a source; None if it never comes."""
        befores = [int(before[source]) for before in self._before]
        # Where the source has weight 0, the next stretch has had as many, and is the one found.
        number = bisect_right(befores, own) - 1
        if not self.stretches[number].weights[source]:
            return None
        return self._firsts[number] + self._periods[number].window(source, own - befores[number])
