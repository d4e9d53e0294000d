"""The learning rate as a function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate moves over a run."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up: half a cosine, a straight line, or flat."""
    warmup_steps: int = 715
    """Steps of linear warm-up (GPT-3's 375M tokens at 0.5M a step, https://arxiv.org/abs/2005.14165)."""
    min_lr_ratio: float = 0.1
    """Final learning rate as a share of the largest."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} is negative; use 0 or more"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(
                f"schedule.min_lr_ratio={self.min_lr_ratio} is no share; use a value from 0 to 1"
            )


# Share of the way from the largest (1) to the smallest (0) rate, by progress from 0 to 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


def learning_rate(step: int, steps: int, max_lr: float, config: ScheduleConfig) -> float:
    """The rate of update `step` (counted from 0) of `steps`."""
    if step < config.warmup_steps:
        return max_lr * (step + 1) / config.warmup_steps
    span = max(steps - config.warmup_steps, 1)
    share = SHAPES[config.kind](min((step - config.warmup_steps) / span, 1.0))
    return max_lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)
