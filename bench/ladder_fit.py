"""A line through the losses of small networks, and what it foretells of a larger one.

The loss of networks that are trained on tokens in proportion to their parameters is taken as
L(C) = E + A C^-a, with C the FLOPs of training (https://arxiv.org/abs/2203.15556, section 3.3).
Four losses cannot tell three unknowns apart, so E, what no network can learn, comes in as one more
observation, from other people's fits: `irreducible_loss`. A and a are fitted. Three things keep a
loss off the line: its seed, that no line is quite right, and that losses bend beyond what the small
sizes show. All are in the interval (`Scatter`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

# 1.69 nats per token in https://arxiv.org/abs/2203.15556, and 1.82 when the same data were fitted
# again (https://arxiv.org/abs/2404.10102), over about 4.3 bytes a token. The deviation covers both,
# and texts that are easier or harder to foretell.
_NATS_PER_BYTE, _NATS_PER_BYTE_DEVIATION = 0.41, 0.05
LEAST_SIZES = 3
_FITTED = 2  # unknowns that only the points tell: A and a
_CONFIDENCE = 0.95
# Curvature of a small ladder in nats by the square of a factor e in compute, as a deviation about
# none: 0.01 to 0.08 were measured (bench/LOG.md).
_BEND = 0.02


@dataclass(frozen=True)
class Point:
    """A trained network: its compute and its last validation loss."""

    flops: float
    """FLOPs of its training, 6N + 12LCT for each token (model/estimates/flops.py)."""
    loss: float
    """Nats per token."""


@dataclass(frozen=True)
class Scatter:
    """How far losses are from the line, in nats."""

    noise: float
    """Deviation of a single loss from the mean over seeds."""
    misfit: float
    """Deviation of that mean from the line, beyond what noise explains; the same for all seeds."""
    count: int
    """Degrees of freedom from which the noise was estimated."""
    bend: float = 0.0
    """Deviation of the curvature that the line lacks, by the square of a factor e in compute."""

    def of_mean(self, seeds: int) -> float:
        """Deviation of a mean over `seeds` losses of one size from the line."""
        return math.hypot(self.misfit, self.noise / math.sqrt(seeds))


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
    scatter: Scatter
    compute: tuple[float, ...]
    """FLOPs of the points."""

    def loss_at(self, flops: float) -> float:
        """The loss of networks of that compute, by the line."""
        return float(_loss(flops / self.unit, self.floor, self.height, self.exponent))

    def half_width(self, flops: float, seeds: int) -> float:
        """Half the width of the forecast's interval for a mean over `seeds` networks."""
        from scipy.stats import t  # costs half a second

        x = flops / self.unit
        power = math.exp(self.height) * x**-self.exponent
        slope = np.array([1.0, power, -power * math.log(x)])
        variance = (
            float(slope @ np.array(self.covariance) @ slope)
            + self.scatter.of_mean(seeds) ** 2
            + (self.scatter.bend * self._bent(flops)) ** 2
        )
        return float(t.ppf((1 + _CONFIDENCE) / 2, self.scatter.count)) * math.sqrt(variance)

    def _bent(self, flops: float) -> float:
        """By how much losses of curvature 1 leave a straight line through the points there."""
        logs = np.log(np.array([*self.compute, flops]) / self.unit)
        curved = logs**2 / 2
        straight = np.polyval(np.polyfit(logs[:-1], curved[:-1], 1), logs[-1])
        return float(curved[-1] - straight)


def irreducible_loss(bytes_per_token: float) -> tuple[float, float]:
    """E in nats per token of a text whose tokens have so many bytes, and its deviation."""
    return _NATS_PER_BYTE * bytes_per_token, _NATS_PER_BYTE_DEVIATION * bytes_per_token


def fit_line(
    points: Sequence[Point], floor: tuple[float, float], scatter: Scatter, seeds: int = 1
) -> Line:
    """The line through the points, each of which is the mean of `seeds` losses.

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
            sigma=np.append(np.full(len(x), scatter.of_mean(seeds)), floor[1]),
            absolute_sigma=True,
        )
    except RuntimeError as error:
        raise ValueError(f"no line goes through these losses ({error})") from error
    rows = tuple(tuple(map(float, row)) for row in covariance)
    e, height, exponent = map(float, found)
    return Line(e, height, exponent, unit, rows, scatter, tuple(p.flops for p in points))


def _loss(x: float | np.ndarray, e: float, height: float, exponent: float) -> np.ndarray:
    return e + np.exp(height) * np.asarray(x, dtype=float) ** -exponent


def scatter_of(groups: Mapping[float, Sequence[float]], floor: tuple[float, float]) -> Scatter:
    """The scatter of the losses of each compute, around the line through their means.

    Raises: ValueError if no compute has two losses, or as fit_line does.
    """
    freedom = sum(len(group) - 1 for group in groups.values())
    if not freedom:
        raise ValueError(
            "no two runs have the same compute, so the noise of seeds is not known; give two seeds "
            "or more of some size"
        )
    # Equal losses would leave nothing to weigh the points by.
    noise = max(
        math.sqrt(sum(np.var(group) * len(group) for group in groups.values()) / freedom), 1e-6
    )
    seeds = round(fmean(map(len, groups.values())))
    means = [Point(flops, fmean(group)) for flops, group in groups.items()]
    line = fit_line(means, floor, Scatter(noise, 0.0, freedom), seeds)
    squares = sum((point.loss - line.loss_at(point.flops)) ** 2 for point in means)
    beyond = squares / max(1, len(means) - _FITTED) - noise**2 / seeds
    return Scatter(noise, math.sqrt(max(0.0, beyond)), freedom, _BEND)
