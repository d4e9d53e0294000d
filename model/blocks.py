"""The parts of a transformer block: normalisation, rotary positions, attention, MLP.

Shape letters: B batch, T tokens, S attended tokens, C n_embd, H heads, D head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from model.config import GPTConfig
from model.kv_cache import KVCache
from model.plain_rms_norm import RMS_EPSILON, PlainRMSNorm, plain_rms_norm
from model.shortcuts import Paths

ROPE_BASE = 10_000.0  # https://arxiv.org/abs/2104.09864


def new_norm(config: GPTConfig) -> nn.Module:
    """The normalisation layer that the shape asks for, over the residual stream."""
    if config.norm == "rmsnorm" and not config.norm_weight:
        return PlainRMSNorm()
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=RMS_EPSILON)
    return nn.LayerNorm(config.n_embd, bias=config.bias, elementwise_affine=config.norm_weight)


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate queries or keys by their positions.

    Shapes: x (B, H, T, D), positions (T) or (B, T) -> (B, H, T, D).
    """
    # Pairs are (i, i + D/2) as in Hugging Face's Llama, not (2i, 2i + 1) as in the paper, so that
    # exported weights need no permutation.
    half = x.size(-1) // 2
    # Angles in float32: bfloat16 does not have every integer above 256.
    steps = torch.arange(half, device=x.device, dtype=torch.float32)
    angles = positions.float()[..., None] * ROPE_BASE ** (-steps / half)  # ([B,] T, D/2)
    angles = angles if positions.dim() == 1 else angles[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class _Attention(nn.Module):
    """Causal self-attention; one matrix gives query, key and value."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.rope = config.position == "rope"
        self.qk_norm = config.qk_norm
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        paths: Paths | None,
    ) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C); mask broadcastable to (B, H, T, S), True: attend."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> 3 x (B, H, T, D)
        if self.rope:
            q, k = _rotate(q, positions), _rotate(k, positions)
        if self.qk_norm:
            q, k = plain_rms_norm(q), plain_rms_norm(k)
        if paths is not None:
            v = paths.values(self.layer, v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        # A single token, with a cache, attends to everything before it: no mask at all.
        causal = mask is None and T > 1
        # `is_causal` rather than a mask tensor: with a mask torch cannot take its flash kernel.
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, H, T, D) -> (B, T, C)


class _MLP(nn.Module):
    """The feed-forward layer: GELU, SwiGLU or ReLU squared."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        if config.mlp == "swiglu":
            self.c_gate = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden_width, config.n_embd, bias=config.bias)
        self.kind = config.mlp

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, T, C) -> (B, T, C)."""
        if self.kind == "relu2":
            return self.c_proj(F.relu(self.c_fc(x)).square())
        if self.kind == "swiglu":
            return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))
        # The tanh form, as in https://github.com/openai/gpt-2/blob/master/src/model.py
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = new_norm(config)
        self.attn = _Attention(config, layer)
        self.ln_2 = new_norm(config)
        self.mlp = _MLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        paths: Paths | None = None,
    ) -> Tensor:
        """Shapes: (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), positions, mask, cache, paths)
        return x + self.mlp(self.ln_2(x))


def attention_backend(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the kernel that torch chooses for causal training attention, such as `flash`.

    `unknown` if this version of torch does not report it.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "unknown"
    shape = (1, config.n_head, config.context_length, config.head_width)
    q = torch.empty(shape, device=device, dtype=dtype)
    found = SDPBackend(choose(q, q, q, is_causal=True))
    return found.name.lower().removesuffix("_attention")
