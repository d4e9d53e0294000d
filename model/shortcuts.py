"""Shortcuts through the network: what a block sees besides the one before it. Default: off.

Every block also gets the embedding, every attention layer the first layer's values, and the second
half of the blocks the results of the first half, the last one first, as in a U-net. Sources:
https://github.com/KellerJordan/modded-nanogpt records of 2024-11-06 and 2024-11-10.
Shape letters: B batch, T tokens, C n_embd, H heads, D head width, L blocks.
"""

import torch
from torch import Tensor, nn


class Shortcuts(nn.Module):
    """The learned scales of all shortcuts, one for each block."""

    def __init__(self, n_layer: int) -> None:
        super().__init__()
        self.n_layer = n_layer
        self.stream = nn.Parameter(torch.empty(n_layer))
        self.embedding = nn.Parameter(torch.empty(n_layer))
        self.first_values = nn.Parameter(torch.empty(n_layer))
        if n_layer > 1:  # a parameter without use has neither gradient nor state
            self.earlier = nn.Parameter(torch.empty(n_layer // 2))

    def initialise(self) -> None:
        """Set the scales that training begins with."""
        values = {"stream": 1.0, "embedding": 0.0, "first_values": 0.5, "earlier": 1.0}
        for name, scale in self.named_parameters():
            nn.init.constant_(scale, values[name])


class Paths:
    """What the shortcuts of one forward pass carry."""

    def __init__(self, shortcuts: Shortcuts, embedded: Tensor) -> None:
        """Shape: embedded (B, T, C)."""
        self.scales = shortcuts
        self.embedded = embedded
        self.first: Tensor | None = None
        self.kept: list[Tensor] = []

    def of_one_block(self, first: Tensor | None) -> "Paths":
        """The paths of a block that is computed alone; `first` are the first layer's values."""
        paths = Paths(self.scales, self.embedded)
        paths.first = first
        return paths

    def block_input(self, layer: int, x: Tensor) -> Tensor:
        """The stream that block `layer` gets. Shapes: (B, T, C) -> (B, T, C)."""
        scales, half = self.scales, self.scales.n_layer // 2
        if 1 <= layer <= half:
            self.kept.append(x)  # what the block before it gave
        if layer >= scales.n_layer - half:
            x = x + scales.earlier[layer - scales.n_layer + half] * self.kept.pop()
        return scales.stream[layer] * x + scales.embedding[layer] * self.embedded

    def values(self, layer: int, v: Tensor) -> Tensor:
        """The values of attention layer `layer`. Shapes: (B, H, T, D) -> (B, H, T, D)."""
        if self.first is None:
            self.first = v
        return torch.lerp(v, self.first, self.scales.first_values[layer].to(v.dtype))
