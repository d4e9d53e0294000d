"""Takes the metric lines of a run in order, and judges each mark of its band."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.guards.band.comparison import BandComparison, compare_at
from train.guards.band.marks import LONGEST_WINDOW, digest_at, figures_at
from train.guards.band.record import Band


@dataclass(frozen=True)
class MarkResult:
    """A run at one mark."""

    mark: int
    comparisons: tuple[BandComparison, ...]
    other_data: bool | None
    """Whether the tokens of the last update are not those of the seed's own run. None: unknown."""

    @property
    def outside(self) -> bool:
        """Whether anything is not as in a sound run."""
        return bool(self.other_data) or any(one.outside for one in self.comparisons)


@dataclass
class BandJudge:
    """Takes the metric lines of a run in order, and judges each mark once its lines are known."""

    band: Band
    seed: int
    made: Mapping[str, Any]
    """What computes the run."""
    results: list[MarkResult] = field(default_factory=list)
    _recent: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def paired(self) -> bool:
        """Whether the run should repeat the curve of its own seed, but for rounding.

        The initial weights and the rounding of another torch, device or number format may differ.
        """
        known = self.seed in self.band.seeds and bool(self.band.rounding)
        return known and _kind(self.made) == _kind(self.band.made)

    def add(self, step: int, line: Mapping[str, Any]) -> MarkResult | None:
        """The line of the next step; returns what was found if it is a mark."""
        self._recent[step] = line
        self._recent.pop(step - LONGEST_WINDOW - 1, None)
        if step not in self.band.marks:
            return None
        number = list(self.band.marks).index(step)
        figures = figures_at(step, self._recent)
        found = compare_at(self.band, number, figures, self.seed if self.paired else None)
        own = self.band.seeds.get(self.seed)
        expected = None if own is None else own.digests[number]
        digest = digest_at(step, self._recent)
        other_data = None if expected is None or digest is None else digest != expected
        result = MarkResult(step, tuple(found), other_data)
        self.results.append(result)
        return result


def _kind(made: Mapping[str, Any]) -> tuple[Any, ...]:
    version = str(made.get("torch")).split("+")[0].split(".")[:2]
    return made.get("device"), made.get("dtype"), version
