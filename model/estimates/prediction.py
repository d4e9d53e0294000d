"""Memory and speed of a training step, predicted before it runs.

The trainer prints the prediction beside the measured values.
"""

from dataclasses import dataclass

from model.config import GPTConfig
from model.estimates.flops import (
    peak_flops,
    recomputed_flops_per_token,
    training_flops_per_token,
)
from model.estimates.memory import Memory, StepShape, predict_memory
from model.estimates.updates import adamw_update

# Share of the dense peak, by 6N + 12LCT: the best public figure of a compiled 124M-class trainer in
# bfloat16 on one H200, assumed for TF32 too, 489,000 tokens/s.
# https://github.com/KellerJordan/modded-nanogpt records/track_3_optimization
ASSUMED_MFU = 0.42


@dataclass(frozen=True)
class Prediction:
    """Expected memory and speed of a step."""

    memory: Memory
    tokens_per_second: float | None
    """Over all ranks; None if the device's peak is not known."""
    mfu: float
    """The utilisation that `tokens_per_second` assumes."""
    update_share: float
    """Share of a rank's FLOPs in a step that the optimizer's update takes; every rank makes it."""


def predict(
    config: GPTConfig,
    step: StepShape,
    batch_tokens: int,
    device_name: str = "",
    mfu: float = ASSUMED_MFU,
) -> Prediction:
    """Predict bytes of one rank and tokens/s of all, in steps of `batch_tokens` over all ranks.

    `device_name` is torch's name of the GPU.
    """
    peak = peak_flops(device_name, step.dtype)
    update = (step.update or adamw_update(config)).flops
    of_a_token = training_flops_per_token(config)
    if step.recompute:
        of_a_token += recomputed_flops_per_token(config)
    passes = of_a_token * batch_tokens / step.world_size
    speed = None
    if peak is not None:
        speed = batch_tokens * mfu * peak / (passes + update)
    share = update / (passes + update)
    return Prediction(predict_memory(config, step), speed, mfu, share)
