"""A line through the losses of small networks, and what it foretells of a larger one.

The loss of networks that are trained on tokens in proportion to their parameters is taken as
L(C) = E + A C^-a, with C the FLOPs of training (https://arxiv.org/abs/2203.15556, section 3.3).
Four losses cannot tell three unknowns apart, so E, what no network can learn, comes in as one more
observation, from other people's fits: `irreducible_loss`. A and a are fitted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

# 1.69 nats per token in https://arxiv.org/abs/2203.15556, and 1.82 when the same data were fitted
# again (https://arxiv.org/abs/2404.10102), over about 4.3 bytes a token. The deviation covers both,
# and texts that are easier or harder to foretell.
_NATS_PER_BYTE, _NATS_PER_BYTE_DEVIATION = 0.41, 0.05
LEAST_SIZES = 3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """A trained network: its compute and its last validation loss."""

    flops: float
    """FLOPs of its training, 6N + 12LCT for each token (model/estimates/flops.py)."""
    loss: float
    """Nats per token."""


@dataclass(frozen=True)
class Line:
    """The fitted line: L(C) = floor + exp(`height`) (C / `unit`)^-`exponent`."""

    floor: float
    """E, the loss that no compute can go below."""
    height: float
    exponent: float
    unit: float
    """FLOPs: the geometric mean of the points, where height and exponent are told apart best."""
    covariance: tuple[tuple[float, ...], ...]
    """Of floor, height and exponent."""
    noise: float
    """Deviation of a single loss from its mean over seeds, in nats."""
    noise_count: int
    """Degrees of freedom from which the noise was estimated."""

    def loss_at(self, flops: float) -> float:
        """The loss of networks of that compute, by the line."""
        return float(_loss(flops / self.unit, self.floor, self.height, self.exponent))

    def half_width(self, flops: float, seeds: int) -> float:
        """Half the width of the forecast's interval for a mean over `seeds` networks."""
        from scipy.stats import t  # costs half a second

        x = flops / self.unit
        power = math.exp(self.height) * x**-self.exponent
        slope = np.array([1.0, power, -power * math.log(x)])
        variance = float(slope @ np.array(self.covariance) @ slope) + self.noise**2 / seeds
        return float(t.ppf((1 + _CONFIDENCE) / 2, self.noise_count)) * math.sqrt(variance)


def irreducible_loss(bytes_per_token: float) -> tuple[float, float]:
    """E in nats per token of a text whose tokens have so many bytes, and its deviation."""
    return _NATS_PER_BYTE * bytes_per_token, _NATS_PER_BYTE_DEVIATION * bytes_per_token


def fit_line(
    points: Sequence[Point], floor: tuple[float, float], noise: float, noise_count: int
) -> Line:
    """The line through the points, each of which has the deviation `noise`.

    `floor` is E with its deviation, before the points are seen.
    Raises: ValueError if the points are of fewer than three sizes, or no line goes through them.
    """
    from scipy.optimize import curve_fit

    if len({point.flops for point in points}) < LEAST_SIZES:
        raise ValueError(
            f"a line needs {LEAST_SIZES} sizes or more; these runs have "
            f"{len({point.flops for point in points})}"
        )
    unit = math.exp(fmean(math.log(point.flops) for point in points))
    x = np.array([point.flops / unit for point in points])
    losses = np.array([point.loss for point in points])

    def predicted(_: object, e: float, height: float, exponent: float) -> np.ndarray:
        return np.append(_loss(x, e, height, exponent), e)

    start = (floor[0], math.log(max(losses.mean() - floor[0], 0.1)), 0.1)
    try:
        found, covariance = curve_fit(
            predicted,
            np.append(x, 0.0),
            np.append(losses, floor[0]),
            p0=start,
            sigma=np.append(np.full(len(x), noise), floor[1]),
            absolute_sigma=True,
        )
    except RuntimeError as error:
        raise ValueError(f"no line goes through these losses ({error})") from error
    rows = tuple(tuple(map(float, row)) for row in covariance)
    e, height, exponent = map(float, found)
    return Line(e, height, exponent, unit, rows, noise, noise_count)


def _loss(x: float | np.ndarray, e: float, height: float, exponent: float) -> np.ndarray:
    return e + np.exp(height) * np.asarray(x, dtype=float) ** -exponent


def noise_of(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Deviation of a loss over seeds, from several of each size, and its degrees of freedom.

    None if no size has two seeds.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    squares = sum(np.var(group) * len(group) for group in groups)
    return math.sqrt(squares / freedom), freedom
