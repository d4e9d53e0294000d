"""A mean with its confidence interval, by Student's t distribution (scipy)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Interval:
    """The mean of several values, and where the true mean is at a level of confidence.

    `low` and `high` are infinite for a single value, whose deviation is not known.
    """

    mean: float
    low: float
    high: float
    deviation: float
    """Sample standard deviation of the values; NaN for a single one."""
    count: int
    confidence: float

    @property
    def half_width(self) -> float:
        """Distance from the mean to either end."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The interval of the mean of `values`. Raises: ValueError if there is none."""
    if not values:
        raise ValueError("there is no value to take the mean of")
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, -float("inf"), float("inf"), float("nan"), 1, confidence)
    deviation = stdev(values)
    if deviation == 0:
        return Interval(mean, mean, mean, 0.0, len(values), confidence)
    from scipy.stats import ttest_1samp  # costs half a second, which only a result should cost

    found = ttest_1samp(values, 0.0).confidence_interval(confidence)
    return Interval(mean, float(found.low), float(found.high), deviation, len(values), confidence)
