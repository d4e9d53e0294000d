"""GPTConfig: the shape of a network."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

# 50257 -> 50304: tensor cores multiply in tiles, and 50257 is odd.
# https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/
_VOCAB_MULTIPLE = 128
# Larger values are mistakes or malice. Building that many blocks, or one tensor of that size, would
# run for minutes or take all memory before anything else could refuse it.
_LARGEST = {
    "n_layer": 1024,
    "n_head": 2**20,
    "n_embd": 2**20,
    "context_length": 2**30,
    "vocab_size": 2**24,
    "mlp_width": 2**24,
}
_SOFTCAPS = (0.1, 1000.0)  # float32 keeps no digits of the tanh of other bounds
LARGEST_DROPOUT = 0.9  # a tenth of the numbers is left


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
    """Maximum tokens of a sequence (T); also the rows of the learned position table."""
    vocab_size: int = 50257
    """Number of ids of the tokenizer; the embedding is padded to a multiple of 128."""
    mlp_width: int | None = None
    """Hidden width of the feed-forward layers. Default: 4 * n_embd."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each attention and feed-forward layer, and before the head."""
    norm_weight: bool = True
    """Whether these normalisations have learned weights (GPT-2: yes)."""
    embedding_norm: bool = False
    """Whether the embedding is normalised too, before the first block."""
    qk_norm: bool = False
    """Whether each head's queries and keys are divided by their root mean square."""
    mlp: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """Feed-forward layer: GELU (tanh form, GPT-2), SwiGLU (Llama), or ReLU squared."""
    position: Literal["learned", "rope"] = "learned"
    """Learned position table (GPT-2) or rotary embedding (Llama)."""
    bias: bool = True
    """Whether linear layers and LayerNorms have biases (GPT-2: yes)."""
    tied: bool = True
    """Whether the head shares its matrix with the token embedding (GPT-2: yes)."""
    logit_softcap: float | None = None
    """Bound of the logits: z becomes CAP * tanh(z / CAP). None: no bound."""
    shortcuts: bool = False
    """Whether blocks also see the embedding, the first values and earlier blocks; no export."""
    initial_weights: Literal["gpt2", "zero_outputs"] = "gpt2"
    """Scheme of the initial weights. zero_outputs: zero where a block or the head ends, and all
    other matrices by their fan-in."""
    dropout: float = 0.0
    """Share of embedding, attention and each layer's output that a training step sets to zero,
    for little data (GPT-2: 0.1). Evaluation and sampling never do."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(GPTConfig).items():
            _check_field(name, getattr(self, name), get_args(kind) or (kind,))
        cap, (least, most) = self.logit_softcap, _SOFTCAPS
        if cap is not None and not least <= cap <= most:
            raise ValueError(
                f"logit_softcap={_short(cap)} is not from {least:g} to {most:g}; use a number such "
                "as 15, or None"
            )
        if not 0 <= self.dropout <= LARGEST_DROPOUT:
            raise ValueError(
                f"dropout={_short(self.dropout)} is not a share from 0 to {LARGEST_DROPOUT}; use "
                "one such as 0.1, or 0 for none"
            )
        unit = self.n_head * (2 if self.position == "rope" else 1)
        fitting = self.n_embd // unit * unit or unit
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; "
                f"try n_embd={fitting}"
            )
        if self.n_embd % unit:
            raise ValueError(
                f"n_embd/n_head={self.head_width} is odd, which rotary positions cannot split in "
                f"pairs; try n_embd={fitting}"
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
        return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def _check_field(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises: ValueError if the value is of another type or beyond all networks.

    `allowed`: the types of the field, or its words. A configuration may come from a file.
    """
    if float in allowed:
        if type(value) in (int, *allowed):
            return
        example = "0.1" if name == "dropout" else "15, or None"
        raise ValueError(f"{name}={_short(value)} is not a number; use one such as {example}")
    if name not in _LARGEST:
        words = tuple(str(word) for word in allowed if isinstance(word, str))
        if value in words if words else type(value) in allowed:
            return
        raise ValueError(
            f"{name}={_short(value)} is not known; use {' or '.join(words) or 'True or False'}"
        )
    if value is None and type(None) in allowed:
        return
    if type(value) is not int:
        raise ValueError(f"{name}={_short(value)} is not a whole number; use 1 or more")
    if value < 1:
        raise ValueError(f"{name}={_short(value)} is not a size; use 1 or more")
    if value > _LARGEST[name]:
        raise ValueError(
            f"{name}={_short(value)} is more than any network has; use {_LARGEST[name]} or less"
        )


def _short(value: Any) -> str:
    """The value as a person reads it: not the hundred digits or elements that a file may hold."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
