"""How a loss is drawn: smoothed and thinned, at a scale that shows its end."""

from collections.abc import Sequence
from statistics import median

_POINTS = 500  # of a curve that are drawn
_SMOOTHED_PART = 50  # of a curve that one point is the mean of
_START_PART = 20  # of a curve: its first twentieth may be above the picture
_LEAST_RANGE = 0.01
_ROOM = 0.05  # of the range, below and above it


def smoothed(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Positions of some of the values, and there the mean of the values around."""
    count = len(values)
    half = count // _SMOOTHED_PART // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    positions = list(range(0, count, max(1, count // _POINTS)))
    means = []
    for at in positions:
        # As many before as behind, so that the steep start is not shifted; fewer at the end.
        reach = min(half, at)
        first, end = at - reach, min(at + reach + 1, count)
        means.append((sums[end] - sums[first]) / (end - first))
    return positions, means


def scale_of_end(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float, float]:
    """Lowest and highest loss of a picture of runs, each with training and validation losses.

    All ends are seen, and most runs but for their first steps.
    """
    # By the training losses, of which there are more.
    main = [train or val for train, val in curves]
    late = [max(losses[-(-len(losses) // _START_PART) :] or losses) for losses in main if losses]
    low = min(min(losses) for pair in curves for losses in pair if losses)
    high = max(low + _LEAST_RANGE, median(late))
    room = _ROOM * (high - low)
    return low - room, high + room
