"""The parts of a transformer block: normalisation, rotary positions, attention, MLP.

Shape letters: B batch, T tokens, S attended tokens, C n_embd, H heads, D head width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from model.config import GPTConfig
from model.documents.flex_blocks import attend_in_blocks
from model.dropout import dropped
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


def rotation(config: GPTConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which all layers rotate queries and keys at these positions.

    Shapes: positions (T) or (B, T) -> 2 x ([B,] T, H, D).
    """
    # Pairs are (i, i + D/2) as in Hugging Face's Llama, not (2i, 2i + 1) as in the paper, so that
    # exported weights need no permutation.
    half = config.head_width // 2
    # Angles in float32: bfloat16 does not have every integer above 256.
    steps = torch.arange(half, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * ROPE_BASE ** (-steps / half)  # ([B,] T, D/2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    both = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    # A copy for each head: the CPU multiplies long rows faster than short ones (bench/LOG.md).
    cos, sin = (table[..., None, :].repeat_interleave(config.n_head, -2) for table in both)
    return cos, sin


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys. Shapes: (B, T, H, D), 2 x ([B,] T, H, D) -> (B, T, H, D)."""
    return x * cos + x.roll(x.size(-1) // 2, -1) * sin


class _Attention(nn.Module):
    """Causal self-attention; one matrix gives query, key and value."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.qk_norm = config.qk_norm
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | BlockMask | None,
        cache: KVCache | None,
        paths: Paths | None,
        dropout: float,
    ) -> Tensor:
        """`turn` is of `rotation`; None without rotary positions.

        Shapes: x (B, T, C) -> (B, T, C); mask broadcastable to (B, H, T, S), True or 0: attend.
        """
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (part.view(heads) for part in self.c_attn(x).split(C, dim=-1))  # (B, T, H, D)
        if turn is not None:
            q, k = _rotate(q, *turn), _rotate(k, *turn)
        if self.qk_norm:
            q, k = plain_rms_norm(q), plain_rms_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if paths is not None:
            v = paths.values(self.layer, v)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if isinstance(mask, BlockMask):
            y = attend_in_blocks(q, k, v, mask)
        else:
            # A single token, with a cache, attends to everything before it: no mask at all.
            causal = mask is None and T > 1
            # `is_causal` rather than a mask tensor: with a mask torch cannot take its flash kernel.
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
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
            return self.c_proj(F.relu(self.c_fc(x), inplace=True).square())
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
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | BlockMask | None,
        cache: KVCache | None,
        paths: Paths | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """Shapes: (B, T, C) -> (B, T, C)."""
        x = x + dropped(self.attn(self.ln_1(x), turn, mask, cache, paths, dropout), dropout)
        return x + dropped(self.mlp(self.ln_2(x)), dropout)


def recomputed(
    block: nn.Module,
    x: Tensor,
    turn: tuple[Tensor, Tensor] | None,
    mask: Tensor | BlockMask | None,
    paths: Paths | None,
    dropout: float,
) -> Tensor:
    """The same as `block(…)`, but only its input is kept; the backward pass computes it again.

    What is dropped is the same then, because the random state is kept too.
    `block` is a Block. Shapes: as of it.
    """

    def run(x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own = paths and paths.of_one_block(first)  # nothing outside of the block is changed in it
        return block(x, turn, mask, None, own, dropout), own and own.first

    first = paths and paths.first
    keeps_state = dropout > 0
    x, first = checkpoint(run, x, first, use_reentrant=False, preserve_rng_state=keeps_state)
    if paths is not None:
        paths.first = first
    return x


def attention_backend(
    config: GPTConfig, device: torch.device, dtype: torch.dtype, masked: bool = False
) -> str:
    """The name of the kernel that torch chooses for causal training attention, such as `flash`.

    `masked`: with a mask instead. `unknown` if this version of torch does not report it.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "unknown"
    shape = (1, config.n_head, config.context_length, config.head_width)
    q = torch.empty(shape, device=device, dtype=dtype)
    T = config.context_length
    mask = torch.empty((1, 1, T, T), device=device, dtype=dtype) if masked else None
    found = SDPBackend(choose(q, q, q, mask, is_causal=not masked))
    return found.name.lower().removesuffix("_attention")
