"""The learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from storage.option_values import AtMost


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the steps of a run."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after the warm-up: half a cosine, a straight line, or none."""
    warmup_steps: int = AtMost(715)
    """Steps of linear warm-up (GPT-3: 375M tokens, 715 steps of 0.5M; https://arxiv.org/abs/2005.14165).
    The default is shortened in a run that it does not fit."""
    min_lr_ratio: float = 0.1
    """Last learning rate, as a fraction of the largest one."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= 10**12:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} is out of range; use 0 or more"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(
                f"schedule.min_lr_ratio={self.min_lr_ratio} is out of range; use 0 to 1"
            )


# From progress after the warm-up (0 to 1) to a fraction: 1 means the largest rate, 0 the last one.
_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def learning_rate(step: int, steps: int, max_lr: float, config: ScheduleConfig) -> float:
    """The learning rate of update `step` (counted from 0) of `steps` updates."""
    if step < config.warmup_steps:
        return max_lr * (step + 1) / config.warmup_steps
    span = max(steps - config.warmup_steps, 1)
    share = _DECAYS[config.kind](min((step - config.warmup_steps) / span, 1.0))
    return max_lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
