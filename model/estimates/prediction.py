"""Memory and speed of a training step, predicted before it runs.

The trainer prints the prediction beside the measured values.
"""

from dataclasses import dataclass

from model.config import GPTConfig
from model.estimates.flops import peak_flops, training_flops_per_token
from model.estimates.memory import Memory, StepShape, predict_memory

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


def predict(
    config: GPTConfig, step: StepShape, device_name: str = "", mfu: float = ASSUMED_MFU
) -> Prediction:
    """Predict bytes of one rank and tokens/s of all; `device_name` is torch's name of the GPU."""
    peak = peak_flops(device_name, step.dtype)
    speed = None
    if peak is not None:
        speed = mfu * peak * step.world_size / training_flops_per_token(config)
    return Prediction(predict_memory(config, step), speed, mfu)
