"""Memory and speed of a training step, predicted before it runs."""

from dataclasses import dataclass

from model.config import GPTConfig
from model.estimates.flops import peak_flops, training_flops_per_token
from model.estimates.memory import Memory, StepShape, predict_memory

# Of the dense bf16 peak, by 6N + 12LCT: the best public figure of a compiled 124M-class trainer on
# one H200, 489,000 tokens/s (github.com/KellerJordan/modded-nanogpt, records/track_3_optimization).
ASSUMED_MFU = 0.42


@dataclass(frozen=True)
class Prediction:
    """What a step is expected to take; the trainer prints it beside what was measured."""

    memory: Memory
    tokens_per_second: float | None
    """Over all ranks; None where the device's peak is not known."""
    mfu: float
    """The utilisation that `tokens_per_second` assumes."""


def predict(
    config: GPTConfig, step: StepShape, device_name: str = "", mfu: float = ASSUMED_MFU
) -> Prediction:
    """Bytes of one rank and tokens/s over all ranks; `device_name` is torch's name of the GPU."""
    peak = peak_flops(device_name)
    speed = None
    if peak is not None:
        speed = mfu * peak * step.world_size / training_flops_per_token(config)
    return Prediction(predict_memory(config, step), speed, mfu)
