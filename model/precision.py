"""The arithmetic of matrix products: bfloat16 by autocast, or float32."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]


def choose_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """The type of matrix products: `auto` is bfloat16 if the GPU supports it, otherwise float32."""
    if wanted == "auto":
        # A T4 or V100 only emulates bfloat16: its matrix products do not use the tensor cores.
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if capable else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which matrix products are computed in `dtype`."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def product_dtype(like: Tensor) -> torch.dtype:
    """The type of matrix products of such a tensor here: autocast's, or its own."""
    place = like.device.type
    if like.is_meta or not torch.is_autocast_enabled(place):  # there is no autocast without data
        return like.dtype
    return torch.get_autocast_dtype(place)
