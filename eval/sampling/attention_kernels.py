"""The kernels of attention that decoding may use: those without a plan for each length.

Decoding attends to one more key with each token. cuDNN's attention, torch's first choice on Hopper,
builds a plan for every length that it has not seen, and spends tens of milliseconds on each.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def decoding_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """Decode inside this context. On the CPU it changes nothing."""
    return sdpa_kernel(_WITHOUT_PLANS) if device.type == "cuda" else nullcontext()
