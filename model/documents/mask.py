"""Positions within documents, and a mask of what each token attends to, by the ids alone.

A document begins at its first token, end-of-text, which attends only to itself. Positions restart
there. A window that begins inside a document begins with a part of it, at position 0.
Shape letters: B windows, T tokens.
"""

import math

import torch
from torch import Tensor


def document_positions(ids: Tensor, separator: int) -> Tensor:
    """Each token's position in its document; `separator` opens one. Shapes: (B, T) -> (B, T)."""
    place = torch.arange(ids.size(1), device=ids.device)
    starts = torch.where(ids == separator, place, 0).cummax(1).values
    return place - starts


def document_mask(positions: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores: 0, or minus infinity for a token that is not seen.

    Shapes: positions in the documents (B, T) -> (B, 1, T, T).
    """
    place = torch.arange(positions.size(1), device=positions.device)
    starts = (place - positions)[..., None]  # (B, T, 1)
    seen = (place <= place[:, None]) & (place >= starts)  # (B, T, T)
    # Numbers, not booleans: torch would make them from booleans in every layer, and keep each.
    return torch.full_like(seen, -math.inf, dtype=dtype).masked_fill_(seen, 0.0)[:, None]
