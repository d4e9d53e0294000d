"""Which attention kernel torch picks for a model's shape, so that it can be logged."""

import torch
from torch.nn.attention import SDPBackend

from model.gpt import GPTConfig


def attention_backend(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the fused (or plain) kernel for causal training attention, such as flash.

    `unknown` where this torch does not tell.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "unknown"
    shape = (1, config.n_head, config.context_length, config.head_width)
    q = torch.empty(shape, device=device, dtype=dtype)
    found = SDPBackend(choose(q, q, q, is_causal=True))
    return found.name.lower().removesuffix("_attention")
