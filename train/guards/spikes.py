"""Loss and gradient spikes: limits for the next update from recent applied updates.

The statistics use applied updates only: at most `window` of them, and none newer than STEPS_UNREAD
steps before the step in question. Every rank has read those, so all ranks compute the same limits.
A checkpoint keeps the same values, so a resumed run continues with the same limits.
"""

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from storage.json_lines import column, is_count, read_metrics
from storage.metrics import Metrics

STEPS_UNREAD = 2  # when step s is launched, the host of every rank has read step s - 2
MIN_VALUES = 8  # fewer values give no useful standard deviation
_MAX_VALUES = 100_000  # each step's limits are computed from all of them
MAX_SKIPPED_IN_A_ROW = 10
# Where the outputs of blocks and head begin at zero, only the head has a gradient in step 0, and
# queries, keys and the first layers of MLPs have none in step 1.
ZERO_OUTPUT_STEPS = 2
_VALUES = ("loss", "grad_norm", "skipped")


@dataclass(frozen=True)
class GuardConfig:
    """Checks of training. Updates with a loss or gradient that is not finite are always skipped."""

    window: int = 128
    """Number of recent applied updates whose loss and gradient norm a step is compared with."""
    # OLMo-core's SkipStepOptimizer skips at 6 deviations over 128 steps, but counts values that are
    # not finite, so one NaN makes it skip the next 128 good steps. Here they are never counted.
    # https://github.com/allenai/OLMo-core/blob/main/src/olmo_core/optim/skip_step_optimizer.py
    skip_spikes: float = 0.0
    """Skip an update whose loss or gradient norm is this many standard deviations
    above the recent mean (OLMo uses 6). 0 disables it."""
    every: int = 100
    """Compare the ranks every N steps: weights bit for bit, and compute time. 0 disables it."""
    box_weights: bool = True
    """Store the weights in the black box of a bad step too, so that it can be replayed exactly."""
    band: Literal["auto", "off"] | Path = "auto"
    """What the run's curve is compared with: a file of bench/make_band.py; off: nothing.
    auto: the band in bench/bands/ of the same recipe, data and steps, if there is one."""

    def __post_init__(self) -> None:
        if self.window < MIN_VALUES:
            raise ValueError(
                f"guard.window={self.window} is too few to detect a spike; use {MIN_VALUES} or more"
            )
        if self.window > _MAX_VALUES:
            raise ValueError(
                f"guard.window={self.window} is more than any run needs; use at most {_MAX_VALUES}"
            )
        if not (self.skip_spikes == 0 or 1 <= self.skip_spikes < math.inf):
            raise ValueError(
                f"guard.skip_spikes={self.skip_spikes} would skip ordinary steps; use 0 to disable "
                "it, or 1 or more standard deviations, such as 6"
            )
        if self.every < 0:
            raise ValueError(f"guard.every={self.every} is negative; use 0 or more")


class _Applied(NamedTuple):
    """A finished step whose update was applied."""

    step: int
    loss: float
    norm: float


class Skipped(NamedTuple):
    """A finished step whose update was skipped."""

    step: int
    first_window: int
    loss: float
    norm: float

    @property
    def is_spike(self) -> bool:
        """Whether loss and gradient norm were finite but too large."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class _MeanAndDeviation(NamedTuple):
    """Mean and standard deviation of some values."""

    mean: float
    deviation: float

    def z(self, value: float) -> float:
        """Number of standard deviations by which `value` is above the mean."""
        return (value - self.mean) / self.deviation


def mean_and_deviation(values: list[float]) -> _MeanAndDeviation | None:
    """Mean and standard deviation; None for fewer than MIN_VALUES values, or equal ones."""
    if len(values) < MIN_VALUES:
        return None
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return _MeanAndDeviation(mean, deviation) if 0 < deviation < math.inf else None


class Guard:
    """Keeps the values of recent steps and computes the limits of the next one from them."""

    def __init__(self, config: GuardConfig, first_step: int = 0) -> None:
        """`first_step`: values of steps before it are no part of the statistics."""
        self.config = config
        self.first_step = first_step
        self.skipped_in_a_row = 0
        self.skipped: Skipped | None = None
        """The newest step, if its update was skipped and `take_skipped` has not returned it."""
        self.boxes = 0
        """Number of black boxes of spikes that this process has written."""
        self._applied: deque[_Applied] = deque(maxlen=config.window + STEPS_UNREAD)

    def record(self, step: int, first_window: int, loss: float, norm: float, skipped: bool) -> None:
        """Store the values of a step that was just read."""
        # Values of a skipped step are no part of the statistics: one infinite value would disable
        # the limits until it has left the window.
        if skipped:
            self.skipped_in_a_row += 1
            self.skipped = Skipped(step, first_window, loss, norm)
        else:
            self.skipped_in_a_row, self.skipped = 0, None
            if not 0 <= step < self.first_step:
                self._applied.append(_Applied(step, loss, norm))

    def take_skipped(self) -> Skipped | None:
        """The newest step if its update was skipped; None if not, or if it was taken before."""
        taken, self.skipped = self.skipped, None
        return taken

    def history(self, before_step: int) -> dict[str, Any]:
        """What a checkpoint keeps of the steps before `before_step`, as JSON."""
        applied = [list(values) for values in self._applied if values.step < before_step]
        return {"applied": applied, "skipped_in_a_row": self.skipped_in_a_row}

    def load_history(self, history: dict[str, Any]) -> None:
        """Continue after the steps of `history`, those of the run that is resumed."""
        self._applied.extend(_Applied(*values) for values in history["applied"])
        self.skipped_in_a_row = history["skipped_in_a_row"]

    def limits(self, step: int) -> tuple[float, float]:
        """The largest loss and the largest gradient norm with which update `step` is applied."""
        if not self.config.skip_spikes:
            return math.inf, math.inf
        loss, norm = (
            math.inf if found is None else found.mean + self.config.skip_spikes * found.deviation
            for found in self._statistics(step)
        )
        return loss, norm

    def z_scores(self, step: int, loss: float, norm: float) -> Metrics:
        """How far the step is above the recent mean, as metrics; empty while too few are known."""
        metrics: Metrics = {}
        pairs = zip(("loss", "grad_norm"), (loss, norm), self._statistics(step), strict=True)
        for name, value, found in pairs:
            if found is not None and math.isfinite(value):
                metrics[f"guard/{name}_z"] = found.z(value)
        return metrics

    def _statistics(self, step: int) -> tuple[_MeanAndDeviation | None, _MeanAndDeviation | None]:
        """Of loss and gradient norm; None until half a window of steps is known."""
        known = [a for a in self._applied if a.step <= step - STEPS_UNREAD][-self.config.window :]
        if 2 * len(known) < self.config.window:
            return None, None
        return mean_and_deviation([a.loss for a in known]), mean_and_deviation(
            [a.norm for a in known]
        )


def history_of_lines(metrics: Path, before_step: int, window: int) -> dict[str, Any]:
    """The history for a checkpoint that has none (before format 5), from a metrics.jsonl.

    Lines that were lost are not in it. Without that file it is empty.
    """
    lines = [line for line in read_metrics(metrics) if line["step"] < before_step]
    values = [dict(zip(*column(lines, f"train/{name}"), strict=True)) for name in _VALUES]
    loss, norm, skipped = values
    found = [
        [step, loss[step], norm[step]] for step in loss if step in norm and skipped.get(step) == 0
    ]
    return {"applied": found[-(window + STEPS_UNREAD) :], "skipped_in_a_row": 0}


def is_history(value: dict[str, Any]) -> bool:
    """Whether a value of a JSON file is a history."""
    applied = value.get("applied")
    return (
        is_count(value.get("skipped_in_a_row"))
        and isinstance(applied, list)
        and all(
            isinstance(entry, list)
            and [type(part) in (int, float) for part in entry] == [True] * 3
            and is_count(entry[0])
            for entry in applied
        )
    )


def missing_steps(history: dict[str, Any], step: int, window: int) -> int:
    """How many of the steps that the limits of `step` are computed from are not in the history.

    An estimate: skipped steps count as missing.
    """
    return max(0, min(step, window) - len(history["applied"]))
