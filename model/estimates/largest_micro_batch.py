"""The largest micro-batch that a device is predicted to hold, and the largest for `auto`."""

from dataclasses import replace

from model.config import GPTConfig
from model.estimates.memory import USABLE_SHARE, StepShape, predict_memory

# Tokens at once beyond which a step gets no faster. CPU: see bench/LOG.md. CUDA: 64 windows of
# 1,024 tokens, not measured yet (bench/GPU_TODO.md): by arithmetic 256 would be at most 0.7 %
# faster, with four times the memory. From 2**31 logits on, 42 such windows, Inductor's kernels
# have indices of 64 bits.
FAST_TOKENS = {"cpu": 1024, "cuda": 65_536}


def fast_windows(context_length: int, device: str) -> int:
    """The largest power of two of windows at once that makes a step faster; at least 1."""
    return 1 << max((FAST_TOKENS[device] // context_length).bit_length() - 1, 0)


def largest_micro_batch(
    config: GPTConfig,
    share: int,
    memory_bytes: int,
    step: StepShape | None = None,
    most: int | None = None,
) -> int:
    """The largest power of two that divides a rank's `share` of windows and is predicted to fit.

    `memory_bytes`: all memory of the device. `step`: how the step runs; its `micro_batch` and
    `micro_steps` are ignored. It must also fit where a rank has `most` windows.
    Raises: ValueError if not even one window fits.
    """
    like = step or StepShape(1)
    size, needed = share & -share, 0  # the largest power of two that divides
    while size >= 1:
        tried = replace(like, micro_batch=size, micro_steps=(most or share) // size)
        found = predict_memory(config, tried)
        needed = found.peak + (found.host_copy if like.device == "cpu" else 0)
        if needed <= USABLE_SHARE * memory_bytes:
            return size
        size //= 2
    raise ValueError(
        f"one window of context_length={config.context_length} needs {needed / 2**30:.1f} GiB, the "
        f"device has {memory_bytes / 2**30:.1f} GiB of which {USABLE_SHARE:.0%} are used; "
        "take a smaller model, a shorter context or a larger device"
    )
