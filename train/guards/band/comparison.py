"""A run's figures at a mark, compared with a band.

Where the run's seed is in the band, the run is compared with that seed's own curve, from which a
sound run differs by rounding alone: as far as the band knows how much that is. Otherwise it is
compared with all seeds. Both are prediction intervals of Student's t distribution (scipy). A run is
judged by many figures at many marks: their chances of a false alarm add up to at most
FALSE_ALARMS (Bonferroni).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from train.guards.band.marks import FIGURES, GRAD_NORM, HELD_OUT_LOSS, TRAIN_LOSS, first_tenth
from train.guards.band.record import Band, Spread

FALSE_ALARMS = 0.001
"""Share of sound runs that are flagged at most, if the figures are normally distributed."""
PICTURED_SHARE = 0.95
# What no deviation is smaller than: where all seeds agree, such as in the loss of zero outputs.
_LEAST_DEVIATION = {TRAIN_LOSS: 1e-4, GRAD_NORM: 1e-3, HELD_OUT_LOSS: 1e-4}
_LEAST_ROUNDING = 1e-6  # a few units in the last place of a float32
_LEAST_ROUNDING_RUNS = 3


@dataclass(frozen=True)
class BandComparison:
    """One figure at one mark beside a band."""

    figure: str
    mark: int
    """Updates of the weights."""
    value: float
    expected: float
    """Of the seed's own run if `paired`, else the mean over the seeds."""
    deviation: float
    """Of the difference from `expected`, in sound runs."""
    z: float
    """The difference in these deviations."""
    chance: float
    """How likely a sound run differs that much, by Student's t distribution."""
    paired: bool
    """Whether it was compared with the run of its own seed."""
    outside: bool

    @property
    def difference(self) -> float:
        """The value above what was expected."""
        return self.value - self.expected


def number_of_comparisons(band: Band) -> int:
    """How many figures of a whole run are compared."""
    return sum(
        band.spread(figure, number) is not None
        for figure in FIGURES
        for number in range(len(band.marks))
    )


def compare_at(
    band: Band, number: int, figures: Mapping[str, float], own_seed: int | None = None
) -> list[BandComparison]:
    """The figures at the mark of this number. `own_seed`: one whose curve the run should repeat."""
    limit = FALSE_ALARMS / max(1, number_of_comparisons(band))
    found = []
    for figure, value in figures.items():
        spread = band.spread(figure, number)
        if spread is None:
            continue
        own = None if own_seed is None else _own_curve(band, own_seed, figure, number)
        expected, deviation, freedom = own or _over_seeds(band, figure, number, spread)
        z = (value - expected) / deviation
        chance = _two_sided(z, freedom)
        found.append(
            BandComparison(
                figure,
                band.marks[number],
                value,
                expected,
                deviation,
                z,
                chance,
                own is not None,
                chance < limit,
            )
        )
    return found


def range_of_sound_runs(band: Band, figure: str, number: int) -> tuple[float, float] | None:
    """Between which values PICTURED_SHARE of further sound runs are at the mark of this number."""
    from scipy.special import stdtrit

    spread = band.spread(figure, number)
    if spread is None:
        return None
    mean, deviation, freedom = _over_seeds(band, figure, number, spread)
    reach = float(stdtrit(freedom, (1 + PICTURED_SHARE) / 2)) * deviation
    return mean - reach, mean + reach


def _over_seeds(band: Band, figure: str, number: int, spread: Spread) -> tuple[float, float, int]:
    """Expected value, deviation of one more run, and degrees of freedom."""
    deviation = max(
        spread.deviation, _LEAST_DEVIATION[figure], _usual_deviation(band, figure, number)
    )
    return spread.mean, deviation * math.sqrt(1 + 1 / spread.count), spread.count - 1


def _usual_deviation(band: Band, figure: str, number: int) -> float:
    """The median of a figure's deviations from the first tenth of the run on; 0 before that.

    At some marks a few seeds agree by chance. A run that meets a long document there is sound. The
    validation loss is on the same tokens in all runs, so its deviation is what it is.
    """
    settled = range(band.marks.index(first_tenth(band.steps)), len(band.marks))
    if figure == HELD_OUT_LOSS or number not in settled:
        return 0.0
    found = [band.spread(figure, at) for at in settled]
    return median(one.deviation for one in found if one is not None)


def _own_curve(band: Band, seed: int, figure: str, number: int) -> tuple[float, float, int] | None:
    """The same beside the run of the same seed; None if the band cannot tell."""
    curve = band.seeds.get(seed)
    expected = None if curve is None else curve.figures[figure][number]
    known = band.rounding.get(figure, ())[: number + 1]
    if expected is None or not known or known[-1] is None:
        return None
    runs = band.rounding_counts[number]
    if runs < _LEAST_ROUNDING_RUNS:
        return None
    # A difference by rounding grows, and by chance is small at some mark.
    deviation = max([_LEAST_ROUNDING, *(value for value in known if value is not None)])
    return expected, deviation, runs


def _two_sided(z: float, freedom: int) -> float:
    from scipy.special import stdtr  # costs 0.2 seconds, which a run without a band need not wait

    return float(2 * stdtr(freedom, -abs(z)))
