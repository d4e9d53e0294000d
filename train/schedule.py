"""The learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from storage.option_values import AtMost

LENGTHS = ("warmup_steps", "hold", "decay")  # fields in steps, or with a point a share of the run


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps of a run."""

    kind: Literal["cosine", "linear", "1-sqrt", "constant"] = "cosine"
    """Decay: half a cosine, a straight line, 1 minus a square root (steep at first), or none."""
    warmup_steps: int | float = AtMost(715)
    """Steps of linear warm-up (GPT-3: 375M tokens, 715 steps of 0.5M; https://arxiv.org/abs/2005.14165).
    Or a share of the run such as 0.01. The default is shortened in a run that it does not fit."""
    hold: int | float = 0
    """Steps at the largest rate after the warm-up, or a share of the run such as 0.3."""
    decay: int | float | None = None
    """Steps of the decay, or a share of the run such as 0.2. None: all after the hold.
    Without a hold it is at the end of the run, and the steps before it have the largest rate."""
    min_lr_ratio: float = 0.1
    """Last learning rate, as a fraction of the largest one."""

    def __post_init__(self) -> None:
        for name in LENGTHS:
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


WARMUP_PART = 10  # a tenth of a short run is its warm-up
# From progress of the decay (0 to 1) to a fraction: 1 means the largest rate, 0 the last one.
_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class _Phases:
    """The phases of a run of some steps, each by its first step, or the step after its last."""

    warmup_end: int
    decay_start: int
    decay_end: int


def phases(steps: int, config: ScheduleConfig) -> _Phases:
    """The phases of a run of `steps` steps."""
    warmup, hold, decay = (
        _in_steps(length, steps) for length in (config.warmup_steps, config.hold, config.decay)
    )
    # Borders are rounded and not lengths: shares of 0.3 and 0.7 are all of any run.
    warmup_end, start, end = round(warmup), round(warmup + hold), round(warmup + hold + decay)
    if config.kind == "constant":
        start, end = max(start, steps), max(end, steps)
    elif config.decay is None:
        end = max(start, steps)
    elif not hold:
        start, end = max(start, steps - (end - start)), max(end, steps)
    return _Phases(warmup_end, start, end)


def check_phases(steps: int, config: ScheduleConfig) -> None:
    """Raises: ValueError if the phases do not fit in a run, or leave steps that learn nothing."""
    found = phases(steps, config)
    if found.decay_end > steps or 0 < steps <= _in_steps(config.warmup_steps, steps):
        raise ValueError(
            f"schedule.warmup_steps={config.warmup_steps}, schedule.hold={config.hold} and "
            f"schedule.decay={config.decay} take {found.decay_end} steps of {steps}; "
            f"{_shorter(steps, config)}"
        )
    if found.decay_end < steps and config.min_lr_ratio == 0:
        longer = found.decay_start - found.warmup_end + steps - found.decay_end
        raise ValueError(
            f"schedule.hold={config.hold} and schedule.decay={config.decay} leave "
            f"{steps - found.decay_end} of {steps} steps with a learning rate of 0; give "
            f"--schedule.hold {longer}, or a --schedule.min-lr-ratio above 0"
        )


def branch_step(steps: int, config: ScheduleConfig) -> int:
    """The step at which a hold ends: from there a run can be extended without a jump. Else 0."""
    found = phases(steps, config)
    return found.decay_start if found.warmup_end < found.decay_start < steps else 0


def fitted_warmup(steps: int, config: ScheduleConfig) -> int | float:
    """The warm-up of a run of `steps` steps: a preset's own is shortened if it does not fit.

    Raises: ValueError if the phases that the user gave do not fit.
    """
    try:
        check_phases(steps, config)
    except ValueError:
        if not isinstance(config.warmup_steps, AtMost):
            raise
        config = replace(config, warmup_steps=min(config.warmup_steps, steps // WARMUP_PART))
        check_phases(steps, config)
    warmup = config.warmup_steps
    return warmup if isinstance(warmup, float) else int(warmup)


def _in_steps(length: int | float | None, steps: int) -> int | float:
    """A number of steps, or a share of the run, in steps; not rounded."""
    return length * steps if isinstance(length, float) else int(length or 0)


def _shorter(steps: int, config: ScheduleConfig) -> str:
    """What to change if the phases do not fit."""
    room = steps - _in_steps(config.warmup_steps, steps)
    left = room - _in_steps(config.decay, steps)
    if room <= 0:
        return f"give --schedule.warmup-steps {steps // WARMUP_PART} or less"
    if left < 0:
        return f"give --schedule.decay {int(room)} or less"
    return f"give --schedule.hold {int(left)} or less"


def learning_rate(step: int, steps: int, max_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of update `step` (counted from 0) of `steps` updates."""
    found = phases(steps, config)
    if step < found.warmup_end:
        return max_lr * (step + 1) / found.warmup_end
    span = max(found.decay_end - found.decay_start, 1)
    share = _DECAYS[config.kind](min(max(step - found.decay_start, 0) / span, 1.0))
    return max_lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def course_of_rate(step: int, steps: int, max_lr: float, config: ScheduleConfig) -> str:
    """What the rate is in update `step`, and what it does from there on, in words."""
    found = phases(steps, config)
    told = [f"is {learning_rate(step, steps, max_lr, config):.3g} at step {step}"]
    if step < found.warmup_end:
        told.append(f"rises to {max_lr:.3g} by step {found.warmup_end}")
    if max(step, found.warmup_end) < found.decay_start:
        told.append(f"stays there until step {found.decay_start}")
    if max(step, found.decay_start) < found.decay_end:
        told.append(f"falls to {max_lr * config.min_lr_ratio:.3g} by step {found.decay_end}")
    if found.decay_end < steps:
        told.append(f"stays there until step {steps}")
    return ", then ".join(told)
