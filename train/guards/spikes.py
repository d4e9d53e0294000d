"""What the values of finished steps say: updates that were skipped, and spikes.

All statistics are a pure function of finished steps: of updates that were applied, at most `window`
of them, and none newer than all ranks have read when a step is launched. So every rank finds the
same limits, and a resumed run, which reads them back from metrics.jsonl, finds them too.
"""

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from storage.json_lines import read_lines
from storage.metrics import Metrics

STEPS_UNREAD = 2  # when step s is launched, the host of every rank has read step s - 2
FEWEST = 8  # values that a deviation can be told from
MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class GuardConfig:
    """What is watched besides finite numbers, which are always."""

    window: int = 128
    """Applied updates whose loss and gradient norm a step is compared with."""
    skip_spikes: float = 0.0
    """Skip updates so many standard deviations above them (OLMo uses 6); 0 skips none."""
    every: int = 100
    """Steps between comparisons of ranks: replicas bit for bit, and their pace; 0 is never."""
    box_weights: bool = True
    """Keep the weights in a black box too, so that it can be replayed exactly."""

    def __post_init__(self) -> None:
        if self.window < FEWEST:
            raise ValueError(
                f"guard.window={self.window} is too few to tell a spike; use {FEWEST} or more"
            )
        if not (self.skip_spikes == 0 or 1 <= self.skip_spikes < math.inf):
            raise ValueError(
                f"guard.skip_spikes={self.skip_spikes} would skip ordinary steps; use 0 for never, "
                "or 1 or more standard deviations, such as 6"
            )
        if self.every < 0:
            raise ValueError(f"guard.every={self.every} is negative; use 0 or more")


class Applied(NamedTuple):
    """A finished step whose update was applied."""

    step: int
    loss: float
    norm: float


class Skipped(NamedTuple):
    """A finished step whose update was not applied."""

    step: int
    first_window: int
    loss: float
    norm: float

    @property
    def is_spike(self) -> bool:
        """Whether its values were numbers, only too large."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class MeanAndDeviation(NamedTuple):
    """Mean and standard deviation of some values."""

    mean: float
    deviation: float

    def z(self, value: float) -> float:
        """Standard deviations that `value` lies above the mean."""
        return (value - self.mean) / self.deviation


def mean_and_deviation(values: list[float]) -> MeanAndDeviation | None:
    """Mean and deviation; None where they are too few, or all alike."""
    if len(values) < FEWEST:
        return None
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return MeanAndDeviation(mean, deviation) if 0 < deviation < math.inf else None


class Guard:
    """The recent steps as every rank has read them, and what they say of the next one."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped_in_a_row = 0
        self.skipped: Skipped | None = None
        """The newest step, if its update was skipped."""
        self.boxes = 0
        """Black boxes of spikes that this process has written."""
        self._applied: deque[Applied] = deque(maxlen=config.window + STEPS_UNREAD)

    def note(self, step: int, first_window: int, loss: float, norm: float, skipped: bool) -> None:
        """Remember a step that was read. What was skipped never enters the statistics."""
        if skipped:
            self.skipped_in_a_row += 1
            self.skipped = Skipped(step, first_window, loss, norm)
        else:
            self.skipped_in_a_row, self.skipped = 0, None
            self._applied.append(Applied(step, loss, norm))

    def load_history(self, applied: list[Applied]) -> None:
        """Take over what a run that is continued knew."""
        self._applied.extend(Applied(*values) for values in applied)

    def limits(self, step: int) -> tuple[float, float]:
        """The largest loss and gradient norm with which update `step` is applied."""
        if not self.config.skip_spikes:
            return math.inf, math.inf
        loss, norm = (
            math.inf if found is None else found.mean + self.config.skip_spikes * found.deviation
            for found in self._spreads(step)
        )
        return loss, norm

    def z_scores(self, step: int, loss: float, norm: float) -> Metrics:
        """How far the step lies from those before it; nothing while they are too few."""
        metrics: Metrics = {}
        pairs = zip(("loss", "grad_norm"), (loss, norm), self._spreads(step), strict=True)
        for name, value, found in pairs:
            if found is not None and math.isfinite(value):
                metrics[f"guard/{name}_z"] = found.z(value)
        return metrics

    def _spreads(self, step: int) -> tuple[MeanAndDeviation | None, MeanAndDeviation | None]:
        known = [a for a in self._applied if a.step <= step - STEPS_UNREAD][-self.config.window :]
        if 2 * len(known) < self.config.window:
            return None, None
        return mean_and_deviation([a.loss for a in known]), mean_and_deviation(
            [a.norm for a in known]
        )


def read_history(metrics: Path, before_step: int, window: int) -> list[Applied]:
    """The last applied steps that the lines of a metrics.jsonl tell of; there may be none yet."""
    found = []
    for line in read_lines(metrics):
        try:
            applied = Applied(line["step"], line["train/loss"], line["train/grad_norm"])
            if not line["train/skipped"] and applied.step < before_step:
                found.append(applied)
        except (KeyError, TypeError):
            continue  # the line after the last step has no loss
    return found[-(window + STEPS_UNREAD) :]
