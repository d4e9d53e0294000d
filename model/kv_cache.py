"""KV cache: keys and values of earlier tokens, so that generation reads each token once.

The network calls `make_room`, then `extend` in every layer, then `advance`. The sampling code
copies and drops rows.
Shape letters: B rows, T new tokens, S slots attended to, H heads, D head width.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer for a batch of sequences of different lengths.

    Row b has its tokens in slots 0 to lengths[b] - 1: the slot of a token is its position. The
    buffers are allocated once and written in place.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Shapes: (layers, B, H, slots, D)."""
        # Zeros, not empty: a masked slot counts 0 times its value, and 0 times a stray NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        # On the host: `make_room` needs numbers, and reading a GPU tensor would wait for it.
        self.lengths = [0] * shape[1]
        self.end = 0
        self.slots = torch.empty(0, dtype=torch.long, device=device)

    def make_room(self, tokens: int) -> Tensor:
        """The slots of the next `tokens` of every row.

        Shapes: (T) if all rows have the same length, else (B, T).
        Raises: ValueError if they do not fit.
        """
        self.end = max(self.lengths) + tokens  # S
        if self.end > self.keys.size(3):
            raise ValueError(f"{self.end} tokens do not fit a cache of {self.keys.size(3)}")
        device = self.keys.device
        self.slots = torch.arange(self.end - tokens, self.end, device=device)
        if min(self.lengths) != max(self.lengths):
            starts = torch.tensor(self.lengths, device=device)
            self.slots = starts[:, None] + torch.arange(tokens, device=device)
        return self.slots

    def causal_mask(self) -> Tensor | None:
        """Which slots the new tokens attend to, after `make_room`; None if no mask is needed.

        Shapes: (T, S) or (B, 1, T, S).
        """
        T = self.slots.size(-1)
        if self.slots.dim() == 1 and T in (1, self.end):
            return None
        seen = torch.arange(self.end, device=self.slots.device) <= self.slots[..., None]
        return seen if seen.dim() == 2 else seen[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add one layer's keys and values; returns all. Shapes: (B, H, T, D) -> (B, H, S, D)."""
        for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
            if self.slots.dim() == 1:
                kept[:, :, self.end - k.size(2) : self.end] = new
            else:
                rows = torch.arange(k.size(0), device=k.device)[:, None]
                kept[rows, :, self.slots] = new.transpose(1, 2)  # both (B, T, H, D)
        return self.keys[layer, :, :, : self.end], self.values[layer, :, :, : self.end]

    def advance(self) -> None:
        """Count the new tokens as cached; call this after the last layer."""
        self.lengths = [length + self.slots.size(-1) for length in self.lengths]

    def copy_row(self, row: int, other: "KVCache", other_row: int) -> None:
        """Copy a row of another cache into `row`."""
        length = other.lengths[other_row]
        self.keys[:, row, :, :length] = other.keys[:, other_row, :, :length]
        self.values[:, row, :, :length] = other.values[:, other_row, :, :length]
        self.lengths[row] = length

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        self.copy_row(row, self, -1)
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        self.lengths.pop()
