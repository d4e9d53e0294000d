"""One block in detail, and how the FLOPs of a forward pass change with the context length.

Letters: C width, W hidden width, T context length.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from model.config import GPTConfig
from model.estimates.flops import forward_flops
from model.estimates.parameters import mlp_matrices, norm_parameters


@dataclass(frozen=True)
class _BlockPart:
    """What one part of a block has, and what it computes for one window."""

    weights: int
    """Elements of its matrices, or scales of its norms."""
    biases: int
    forward_flops: int
    """FLOPs of its matrix products in a forward pass over one window."""


def block_parts(config: GPTConfig) -> dict[str, _BlockPart]:
    """The parts of one block; their sum is a block's parameters and FLOPs."""
    C, W, matrices = config.n_embd, config.hidden_width, mlp_matrices(config)
    flops = {part: count // config.n_layer for part, count in forward_flops(config).items()}
    scales = 2 * C if config.norm_weight else 0
    has_biases = 1 if config.bias else 0
    return {
        "query, key, value": _BlockPart(3 * C * C, has_biases * 3 * C, flops["query, key, value"]),
        "attention scores": _BlockPart(0, 0, flops["attention scores"]),
        "attention values": _BlockPart(0, 0, flops["attention values"]),
        "attention output": _BlockPart(C * C, has_biases * C, flops["attention output"]),
        "feed-forward": _BlockPart(
            matrices * C * W, has_biases * ((matrices - 1) * W + C), flops["feed-forward"]
        ),
        "two norms": _BlockPart(scales, 2 * norm_parameters(config) - scales, 0),
    }


def shares(counts: dict[str, int]) -> dict[str, float]:
    """The share of each part in the sum."""
    total = sum(counts.values())
    return {part: count / total for part, count in counts.items()}


def context_comparison(config: GPTConfig, other_length: int) -> dict[str, Any]:
    """Forward FLOPs of one window (published vocabulary) at two context lengths, by part.

    `ratio` is how many times as many one window takes, `ratio_per_token` the same of a token.
    """
    lengths = (other_length, config.context_length)
    flops = [forward_flops(replace(config, context_length=T), padded=False) for T in lengths]
    first, second = (sum(counts.values()) for counts in flops)
    ratio = second / first
    return {
        "context_lengths": list(lengths),
        "forward_flops": flops,
        "shares": [shares(counts) for counts in flops],
        "ratio": ratio,
        "ratio_per_token": ratio * lengths[0] / lengths[1],
    }


def block_as_json(config: GPTConfig) -> dict[str, dict[str, int]]:
    """`block_parts` as JSON values."""
    return {name: asdict(part) for name, part in block_parts(config).items()}
