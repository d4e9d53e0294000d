"""What attention within documents (`--mask-documents`) computes and keeps.

Letters: T context length, C width.
"""

import numpy as np
from numpy.typing import NDArray

from model.config import GPTConfig
from model.documents.flex_blocks import fits_flex
from model.estimates.flops import causal_flops_per_token

_POSITION = 8  # bytes


def attended_tokens(context_length: int, lengths: NDArray[np.integer]) -> float:
    """Mean number of tokens that a token attends to, itself included, if no document is crossed.

    Documents of these lengths follow one another, and windows begin anywhere in them.
    """
    T, place = context_length, np.arange(context_length)
    # The token at place p of its document has T equally likely places in its window.
    seen = 1 + (place * (place - 1) / 2 + place * (T - place)) / T
    sums = np.concatenate([[0.0], np.cumsum(seen)])
    behind = np.maximum(lengths.astype(np.int64) - T, 0)
    total = sums[np.minimum(lengths, T)].sum() + behind.sum() * (T + 1) / 2
    return float(total / lengths.sum(dtype=np.int64))


def attended_tokens_of_mean(context_length: int, mean_tokens: int) -> float:
    """The same if only the mean length is known: a document ends at any token by the same chance.

    Real lengths vary more, so more of their tokens are in long documents.
    """
    if mean_tokens == 1:
        return 1.0
    behind = np.arange(1, context_length + 1)
    return float(np.mean(-mean_tokens * np.expm1(behind * np.log1p(-1 / mean_tokens))))


def document_flops_per_token(config: GPTConfig, attended: float) -> float:
    """Training FLOPs per token of matrix products, with exactly the scores that are not masked."""
    only_matrices = causal_flops_per_token(config) - 6 * config.n_layer * (
        config.n_embd * config.context_length
    )
    return only_matrices + 12 * config.n_layer * config.n_embd * attended


def documents_as_json(config: GPTConfig, mean_tokens: int | None) -> dict[str, float] | None:
    """What is computed within documents of this mean length; None if attention crosses them."""
    if mean_tokens is None:
        return None
    attended = attended_tokens_of_mean(config.context_length, mean_tokens)
    return {
        "mean_tokens": mean_tokens,
        "attended_tokens": attended,
        "attended_without": (config.context_length + 1) / 2,
        "training_flops_per_token": document_flops_per_token(config, attended),
    }


def document_bytes(config: GPTConfig, element: int, device: str, compiled: bool) -> int:
    """Bytes for each token that all layers share: the mask, and positions or their rotations.

    `element`: bytes of an element of the matrix products.
    """
    places = 2 * config.n_embd * element if config.position == "rope" else _POSITION
    blocks = fits_flex(device, config.head_width, config.dropout, compiled)
    return places + (_POSITION if blocks else config.context_length * element)
