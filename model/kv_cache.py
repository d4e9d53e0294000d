"""Keys and values of tokens already seen, so that generation reads each token once.

The network calls `make_room`, `extend` in every layer, and `advance`; whoever generates moves rows.
Shape letters: B rows, T new tokens, S slots attended to, H heads, D head width.
"""

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer for a batch of rows that grow token by token.

    Row b holds its tokens in slots 0 to lengths[b] - 1, so that a token's slot is its position;
    rows may differ in length. The buffers are written in place and never grow.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Shapes: (layers, B, H, slots, D)."""
        # Zeros: a masked slot counts 0 times its value, which memory left as it was makes NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * shape[1]
        self.end = 0
        self.slots = torch.empty(0, dtype=torch.long, device=device)

    def make_room(self, tokens: int) -> Tensor:
        """The slots of the next tokens of every row: (T) if rows are equally long, else (B, T).

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
        """Which slots the tokens that room was made for attend to; None where no mask is needed.

        Shapes: (T, S) or (B, 1, T, S).
        """
        T = self.slots.size(-1)
        if self.slots.dim() == 1 and T in (1, self.end):
            return None
        seen = torch.arange(self.end, device=self.slots.device) <= self.slots[..., None]
        return seen if seen.dim() == 2 else seen[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add this call's keys and values; give all of the layer. (B, H, T, D) -> (B, H, S, D)."""
        for kept, new in ((self.keys[layer], k), (self.values[layer], v)):
            if self.slots.dim() == 1:
                kept[:, :, self.end - k.size(2) : self.end] = new
            else:
                rows = torch.arange(k.size(0), device=k.device)[:, None]
                kept[rows, :, self.slots] = new.transpose(1, 2)  # both (B, T, H, D)
        return self.keys[layer, :, :, : self.end], self.values[layer, :, :, : self.end]

    def advance(self) -> None:
        """Count the tokens that room was made for as seen, once every layer holds them."""
        self.lengths = [length + self.slots.size(-1) for length in self.lengths]

    def copy_row(self, row: int, other: "KVCache", other_row: int) -> None:
        """Make `row` hold what a row of another cache holds."""
        length = other.lengths[other_row]
        self.keys[:, row, :, :length] = other.keys[:, other_row, :, :length]
        self.values[:, row, :, :length] = other.values[:, other_row, :, :length]
        self.lengths[row] = length

    def drop(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        self.copy_row(row, self, -1)
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        self.lengths.pop()
