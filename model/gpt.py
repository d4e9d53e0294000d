"""The network: GPT-2 exactly by default, its neighbours (Llama-like shapes) by orthogonal fields.

Two calls: `hidden(ids)` gives the last layer's normalised states, `head(states)` the logits.
Shape letters: B batch, T tokens, S attended tokens, C n_embd, H heads, D head width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kv_cache import KVCache

VOCAB_MULTIPLE = 128  # 50257 -> 50304: the head's matrix multiply runs on whole tiles
INIT_STD = 0.02  # https://github.com/openai/gpt-2/blob/master/src/model.py
ROPE_BASE = 10_000.0  # https://arxiv.org/abs/2104.09864
RMS_EPSILON = 1e-5


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a network; the defaults are GPT-2 124M."""

    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads; must divide n_embd."""
    n_embd: int = 768
    """Width of the residual stream (C)."""
    context_length: int = 1024
    """Most tokens attended at once (T); also the rows of the learned position table."""
    vocab_size: int = 50257
    """Ids that the tokenizer can produce; the embedding is padded to a multiple of 128."""
    mlp_width: int | None = None
    """Hidden width of the feed-forward layers; None is 4 * n_embd."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each layer."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Feed-forward layer: GELU (tanh form, GPT-2) or SwiGLU (Llama)."""
    position: Literal["learned", "rope"] = "learned"
    """Learned position table (GPT-2) or rotary embedding (Llama)."""
    bias: bool = True
    """Whether linear layers and LayerNorms have biases (GPT-2: yes)."""
    tied: bool = True
    """Whether the head shares its matrix with the token embedding (GPT-2: yes)."""

    def __post_init__(self) -> None:
        sizes = ("n_layer", "n_head", "n_embd", "context_length", "vocab_size")
        given = sizes if self.mlp_width is None else (*sizes, "mlp_width")
        for name in given:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a size; use 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; "
                f"try n_embd={self.n_embd // self.n_head * self.n_head or self.n_head}"
            )
        if self.position == "rope" and self.head_width % 2:
            raise ValueError(
                f"n_embd/n_head={self.head_width} is odd, which rotary positions cannot split in "
                f"pairs; use an even head width"
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def hidden_width(self) -> int:
        """Hidden width of the feed-forward layers."""
        return self.mlp_width or 4 * self.n_embd

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and logits (V): vocab_size rounded up to a multiple of 128."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def new_norm(config: GPTConfig) -> nn.Module:
    """A normalisation layer over the residual stream."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=RMS_EPSILON)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions in Llama's halves convention. x (B, H, T, D), positions (T) or (B, T)."""
    half = x.size(-1) // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32)
    angles = positions.float()[..., None] * ROPE_BASE ** (-steps / half)  # ([B,] T, D/2)
    angles = angles if positions.dim() == 1 else angles[:, None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Causal self-attention with fused query, key and value."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.rope = config.position == "rope"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Shapes: x (B, T, C) -> (B, T, C); mask broadcastable to (B, H, T, S), True attends."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> 3 x (B, H, T, D)
        if self.rope:
            q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        causal = mask is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))  # (B, H, T, D) -> (B, T, C)


class MLP(nn.Module):
    """The feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        if config.mlp == "swiglu":
            self.c_gate = nn.Linear(config.n_embd, config.hidden_width, bias=config.bias)
        self.c_proj = nn.Linear(config.hidden_width, config.n_embd, bias=config.bias)
        self.gated = config.mlp == "swiglu"

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, T, C) -> (B, T, C)."""
        if self.gated:
            return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = new_norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = new_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Shapes: (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), positions, mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A GPT-2-class language model; parameter names are GPT-2's."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = new_norm(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)

    def initialise(self, seed: int) -> None:
        """Draw fresh weights from `seed` (the same on every rank and device)."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
                parameter.data.copy_(drawn)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        residual: torch.dtype | None = None,
    ) -> Tensor:
        """The normalised states after the last block.

        Shapes: ids (B, T) integers -> (B, T, C). positions (T) or (B, T), default 0..T-1 (after
        what is cached). mask, broadcastable to (B, H, T, S), True where attention is allowed;
        default causal. `residual` is the type of the residual stream; default the embedding's.
        Raises: ValueError for more tokens than context_length.
        """
        T = ids.size(1)
        slots = torch.arange(0, T, device=ids.device) if cache is None else cache.make_room(T)
        if positions is None:
            longest = T if cache is None else cache.end
            if longest > self.config.context_length:
                raise ValueError(
                    f"{longest} tokens are more than context_length={self.config.context_length}; "
                    "shorten the input"
                )
            positions = slots
        if mask is None and cache is not None:
            mask = cache.causal_mask()
        x = self.wte(ids)
        if self.config.position == "learned":
            x = x + self.wpe(positions)
        x = x.to(residual or x.dtype)
        for block in self.h:
            x = block(x, positions, mask, cache)
        if cache is not None:
            cache.advance()
        return self.ln_f(x)

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens; dtype None is the weights'."""
        config, like = self.config, self.wte.weight
        shape = (config.n_layer, batch, config.n_head, length, config.head_width)
        return KVCache(shape, dtype or like.dtype, like.device)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, C)."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over the padded vocabulary. Shapes: (..., C) -> (..., V)."""
        return F.linear(hidden, self.head_weight)

    def exact_head(self, hidden: Tensor) -> Tensor:
        """Logits summed and kept in float32, whatever autocast says. Shapes: (..., C) -> (..., V).

        On CUDA their products are TF32's. GPT-2's logits lie near -100, where bfloat16 has steps of
        a half and ties the likeliest tokens.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head_weight.float())

    def live_logits(self, hidden: Tensor) -> Tensor:
        """float32 logits, padding ids at -inf, for sampling and scoring. (..., C) -> (..., V)."""
        logits = self.exact_head(hidden)
        logits[..., self.config.vocab_size :] = -math.inf
        return logits

    def forward(self, ids: Tensor) -> Tensor:
        """Logits over the padded vocabulary. Shapes: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids))
