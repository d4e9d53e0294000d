"""The learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from storage.option_values import AtMost


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps of a run."""

    kind: Literal["cosine", "linear", "1-sqrt", "constant"] = "cosine"
    """Decay: half a cosine, a straight line, 1 minus a square root (steep at first), or none."""
    warmup_steps: int | float = AtMost(715)
    """Steps of linear warm-up (GPT-3: 375M tokens, 715 steps of 0.5M; https://arxiv.org/abs/2005.14165),
    or a share of the run such as 0.01. The default is shortened in a run that it does not fit."""
    hold: int | float = 0
    """Steps at the largest rate after the warm-up, or a share of the run such as 0.3."""
    decay: int | float | None = None
    """Steps of the decay, or a share of the run such as 0.2. None: all after the hold. If only this
    is given, the run's last steps decay and those before hold the rate."""
    min_lr_ratio: float = 0.1
    """Last learning rate, as a fraction of the largest one."""

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "hold", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= (1 if isinstance(value, float) else 10**12):
                raise ValueError(
                    f"schedule.{name}={value} is out of range; use a number of steps, 0 or more, "
                    "or a share of the run with a point in it, from 0.0 to 1.0"
                )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(
                f"schedule.min_lr_ratio={self.min_lr_ratio} is out of range; use 0 to 1"
            )


# From progress of the decay (0 to 1) to a fraction: 1 means the largest rate, 0 the last one.
_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class _Phases:
    """The phases of a run of some steps, in steps."""

    warmup: int
    decay_start: int
    decay_end: int


def phases(steps: int, config: ScheduleConfig) -> _Phases:
    """The phases of a run of `steps` steps.

    Raises: ValueError if they do not fit the run together.
    """
    warmup, hold = _in_steps(config.warmup_steps, steps), _in_steps(config.hold, steps)
    decay = None if config.decay is None else _in_steps(config.decay, steps)
    if decay is not None and not config.hold:
        hold = steps - warmup - decay
    start = warmup + hold
    if hold < 0 or start + (decay or 0) > steps:
        raise ValueError(
            f"schedule.warmup_steps={config.warmup_steps}, schedule.hold={config.hold} and "
            f"schedule.decay={config.decay} take more than the {steps} steps of the run; "
            "make one of them shorter"
        )
    return _Phases(warmup, start, steps if decay is None else start + decay)


def _in_steps(length: int | float, steps: int) -> int:
    """A number of steps, or a share of the run, in steps."""
    return round(length * steps) if isinstance(length, float) else int(length)


def learning_rate(step: int, steps: int, max_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of update `step` (counted from 0) of `steps` updates."""
    found = phases(steps, config)
    if step < found.warmup:
        return max_lr * (step + 1) / found.warmup
    span = max(found.decay_end - found.decay_start, 1)
    share = _DECAYS[config.kind](min(max(step - found.decay_start, 0) / span, 1.0))
    return max_lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
