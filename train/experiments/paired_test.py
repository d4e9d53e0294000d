"""Whether two groups of runs are told apart, by Student's t (scipy): of pairs, or Welch's.

A pair is two runs with one seed. The seed decides the order of the data and the initial weights, so
that what both share cancels in their difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from train.experiments.intervals import Interval, mean_interval

_POWER = 0.9  # share of judgements in which a difference is to be found
_MOST_PAIRS = 100_000


@dataclass(frozen=True)
class GroupDifference:
    """By how much the values of group B differ from those of group A."""

    interval: Interval
    """Mean of B minus A, and where the true one is."""
    p_value: float
    """Chance of a difference at least as large if there were none."""
    paired: bool
    identical: bool
    """Whether every pair has equal values, to the last bit."""

    @property
    def told_apart(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval.low > 0 or self.interval.high < 0

    def is_within(self, smallest: float) -> bool:
        """Whether the interval excludes every difference of at least `smallest`."""
        return -smallest < self.interval.low and self.interval.high < smallest


def compare_pairs(
    a: Sequence[float], b: Sequence[float], error_rate: float = 0.05
) -> GroupDifference:
    """The difference of groups whose values are pairs, in the same order.

    `error_rate` is the chance that groups without a difference are told apart.
    Raises: ValueError if there is no pair, or the groups differ in their number.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs; give equally many")
    found = mean_interval([y - x for x, y in zip(a, b, strict=True)], 1 - error_rate)
    identical = list(a) == list(b)
    if found.count < 2 or found.deviation == 0:
        chance = 1.0 if identical or found.count < 2 else 0.0
        return GroupDifference(found, chance, True, identical)
    from scipy.stats import ttest_rel  # costs half a second, which only a result should cost

    test: Any = ttest_rel(b, a)
    return GroupDifference(found, float(test.pvalue), True, identical)


def compare_groups(
    a: Sequence[float], b: Sequence[float], error_rate: float = 0.05
) -> GroupDifference:
    """The same of groups that are no pairs, with deviations of their own (Welch's t).

    Raises: ValueError if a group has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(
            f"groups of {len(a)} and {len(b)} values without pairs do not show their noise; give "
            "each 2 or more, or the same seeds"
        )
    mean = fmean(b) - fmean(a)
    deviation = math.sqrt(stdev(a) ** 2 + stdev(b) ** 2)
    count, confidence = min(len(a), len(b)), 1 - error_rate
    if deviation == 0:
        found = Interval(mean, mean, mean, 0.0, count, confidence)
        return GroupDifference(found, float(mean == 0), False, False)
    from scipy.stats import ttest_ind

    test: Any = ttest_ind(b, a, equal_var=False)
    ends = test.confidence_interval(confidence)
    found = Interval(mean, float(ends.low), float(ends.high), deviation, count, confidence)
    return GroupDifference(found, float(test.pvalue), False, False)


def pairs_needed(difference: float, deviation: float, error_rate: float = 0.05) -> int | None:
    """The pairs with which a difference of this size is found in nine of ten judgements.

    `deviation` is that of the pairs' differences. None: not with 100,000 pairs.
    Source: the power of the t-test, by the noncentral t distribution.
    """
    if deviation == 0:
        return 2
    low, high = 1, 2
    while _power(difference, deviation, high, error_rate) < _POWER:
        low, high = high, 2 * high
        if low > _MOST_PAIRS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _power(difference, deviation, middle, error_rate) < _POWER:
            low = middle
        else:
            high = middle
    return high


def smallest_seen(deviation: float, pairs: int, error_rate: float = 0.05) -> float:
    """The difference that this many pairs find in nine of ten judgements."""
    from scipy.optimize import brentq

    if deviation == 0:
        return 0.0
    high = deviation
    while _power(high, deviation, pairs, error_rate) < _POWER:
        high *= 2
    found: Any = brentq(lambda size: _power(size, deviation, pairs, error_rate) - _POWER, 0.0, high)
    return float(found)


def _power(difference: float, deviation: float, pairs: int, error_rate: float) -> float:
    """The chance that the two-sided t-test of this many pairs finds the difference."""
    from scipy.stats import nct, t

    freedom, shift = pairs - 1, abs(difference) / deviation * math.sqrt(pairs)
    limit = float(t.ppf(1 - error_rate / 2, freedom))
    # The other tail is less than half the error rate; where the shift is large, scipy has NaN.
    chance = float(nct.sf(limit, freedom, shift))
    return 1.0 if math.isnan(chance) and shift > limit else chance
