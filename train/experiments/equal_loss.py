"""How many tokens or seconds one run needs for the loss with which another one ends.

Of a pair, the run that ends better is followed to the point of its curve at which it first has the
other's last loss. What it needs up to there, as a share of what the other needed for its whole run,
is the ratio: B needs 0.95 of A's tokens, or 1.05 if A is the better one. The curve is that of the
run's own schedule: a run that is planned shorter, and lowers its rate earlier, may need still less.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from train.experiments.intervals import Interval, mean_interval
from train.reporting.run_summary import Curve, RunSummary

_LEAST_POINTS = 4  # of a curve between which is interpolated


def ratio_of_tokens(a: RunSummary, b: RunSummary) -> float | None:
    """Tokens that B needs for equal loss, as a share of A's. None: the curves do not tell."""
    return _ratio(a.val_curve, b.val_curve, a.val_curve.tokens, b.val_curve.tokens)


def ratio_of_seconds(a: RunSummary, b: RunSummary) -> float | None:
    """The same in seconds of training: without start, validation and saving."""
    return _ratio(a.val_curve, b.val_curve, a.val_curve.seconds, b.val_curve.seconds)


def mean_ratio(ratios: Sequence[float], confidence: float) -> Interval:
    """The geometric mean of ratios with its interval; `deviation` is that of the logarithms."""
    found = mean_interval([math.log(ratio) for ratio in ratios], confidence)
    return Interval(
        math.exp(found.mean),
        math.exp(found.low),
        _exp(found.high),
        found.deviation,
        found.count,
        confidence,
    )


def _ratio(a: Curve, b: Curve, of_a: Sequence[float], of_b: Sequence[float]) -> float | None:
    if min(len(a.loss), len(b.loss)) < _LEAST_POINTS:
        return None
    if b.loss[-1] <= a.loss[-1]:
        reached, whole = _first_at(b.loss, of_b, a.loss[-1]), of_a[-1]
        return reached / whole if reached and whole else None
    reached, whole = _first_at(a.loss, of_a, b.loss[-1]), of_b[-1]
    return whole / reached if reached and whole else None


def _first_at(losses: Sequence[float], points: Sequence[float], loss: float) -> float | None:
    """Where the curve first has this loss, by a line between its points; None: nowhere."""
    if losses[0] <= loss:
        return points[0]
    curve = pairwise(zip(losses, points, strict=True))
    for (before, begin), (after, end) in curve:
        if after <= loss:
            return begin + (before - loss) / (before - after) * (end - begin)
    return None


def _exp(value: float) -> float:
    """The exponential, infinite where it is too large."""
    return math.exp(value) if value < math.log(1e300) else math.inf
