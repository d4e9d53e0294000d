"""Gradients and losses summed in a tree: the same bits on any number of ranks.

A step has M micro-batches, M = o * 2**k with o odd. Runs of o micro-batches that follow one another
are added from left to right, and the 2**k sums in a balanced binary tree over their number. A rank
has A = M / W micro-batches that follow one another, W a power of two, so its own sum is a subtree.
Ranks add in pairs only, and a sum of two does not depend on their order: no order is left to a
library.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.collectives import sum_over_ranks, swap_with
from parallel.ranks import Ranks

_ALIGNED = 16  # elements: each part of a flat buffer begins at a multiple of 64 bytes


def odd_part(number: int) -> int:
    """The largest odd divisor: of a step's micro-batches, how many are added from left to right."""
    return number // (number & -number)


def tree_sum(terms: Tensor) -> Tensor:
    """The sum of a step's terms in the order of the tree, one for each micro-batch.

    Shapes: (M,) -> ().
    """
    runs = terms.view(-1, odd_part(len(terms)))  # (2**k, o)
    sums = runs[:, 0].clone()
    for column in runs.unbind(1)[1:]:
        sums += column
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return sums[0]


@dataclass(frozen=True)
class _Exchange:
    """Two ranks send one another a part: each sends `sent` and gets the other's in `received`."""

    partner: int
    sent: Tensor
    received: Tensor


def exchanges(flat: Tensor, rank: int, world_size: int, scratch: Tensor) -> Iterator[_Exchange]:
    """What this rank exchanges so that `flat` becomes the sum over all ranks, on all of them.

    The caller makes each exchange before it asks for the next one. Recursive halving and doubling
    (https://doi.org/10.1007/978-3-540-24685-5_1): in stage s a rank and the one whose number
    differs in bit s each add one half of what they share; then the sums return the same way. Each
    rank sends 2 * (1 - 1 / W) of the bytes of `flat`, as a ring would.
    Shapes: flat (n,), scratch at least (n / 2 + 16,).
    """
    parts: list[tuple[int, Tensor, Tensor]] = []
    part = flat
    for stage in range(world_size.bit_length() - 1):
        middle = -(-len(part) // (2 * _ALIGNED)) * _ALIGNED
        halves = part[:middle], part[middle:]
        upper = rank >> stage & 1
        own, other = halves[upper], halves[1 - upper]
        partner, received = rank ^ (1 << stage), scratch[: len(own)]
        yield _Exchange(partner, other, received)
        own += received
        parts.append((partner, own, other))
        part = own
    for partner, own, other in reversed(parts):
        yield _Exchange(partner, own, other)


class TreeReduction:
    """Sums in the order of the tree, inside a rank and over ranks.

    Inside a rank the sums of finished subtrees wait like the digits of a binary counter: at most
    log2(A) gradients beside the one to which the backward pass adds.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self.module = module
        self.ranks = ranks
        self._parameters = list(module.parameters())  # a tied one once
        self._subtrees: list[list[Tensor]] = []  # sums that wait for their neighbour, largest first
        self._losses: list[Tensor] = []
        self._own = 0  # micro-batches of this rank in the step
        self._leaf = 1  # of them, how many the backward passes add by themselves
        self._shared: _Shared | None = None

    def begin(self, micro_batches: int) -> int:
        """Forget what was summed so far; a step of `micro_batches` on this rank follows.

        Returns the number by which each of its losses must be divided: that of all ranks'.
        """
        self._subtrees, self._losses, self._own = [], [], micro_batches
        odd = odd_part(micro_batches)
        # Two at once where the tree begins with pairs: a sum of two is the same either way.
        self._leaf = odd if odd > 1 else min(2, micro_batches)
        self.module.zero_grad(set_to_none=True)
        return micro_batches * self.ranks.world_size

    def micro_step(self, number: int) -> nullcontext[None]:
        """Nothing has to be done around a forward and backward pass."""
        return nullcontext()

    @torch.no_grad()
    def add(self, loss: Tensor) -> None:
        """The backward pass of the next micro-batch is done: sum the subtrees that end with it."""
        self._losses.append(loss.double())
        leaves, rest = divmod(len(self._losses), self._leaf)
        if rest:
            return
        gradients = self._gradients()
        while leaves % 2 == 0:
            torch._foreach_add_(gradients, self._subtrees.pop())  # type: ignore[reportPrivateImportUsage]
            leaves //= 2
        if len(self._losses) < self._own:
            self._subtrees.append(gradients)
            self.module.zero_grad(set_to_none=True)  # the next backward pass begins another sum

    @torch.no_grad()
    def finish(self, values: Tensor) -> None:
        """Sum gradients (in `.grad`) and `values` (in place) over ranks.

        The first value becomes the mean loss of the step: each loss is divided already.
        Shape: (n,) float64, the first one 0.
        """
        rank, world_size = self.ranks.rank, self.ranks.world_size
        if world_size > 1:
            self._shared = self._shared or _Shared(self._parameters)
            self._shared.sum_over_ranks(self._parameters, rank, world_size)
        losses = values.new_zeros(self._own * world_size)
        losses[rank * self._own : (rank + 1) * self._own] = torch.stack(self._losses)
        # One reduction for all: each loss is added to zeros, and sums of the others are exact.
        sent = sum_over_ranks(torch.cat([values, losses]))
        values.copy_(sent[: len(values)])
        values[0] = tree_sum(sent[len(values) :])

    def _gradients(self) -> list[Tensor]:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        assert len(gradients) == len(self._parameters), "every parameter has a gradient"
        return gradients


class _Shared:
    """The gradient in one piece of memory, which ranks exchange, and half as much to receive."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in parameters]
        self.flat = parameters[0].new_zeros(sum(sizes))
        self.scratch = self.flat.new_empty(len(self.flat) // 2 + _ALIGNED)
        pairs = zip(parameters, self.flat.split(sizes), strict=True)
        self.parts = [part[: p.numel()].view(p.shape) for p, part in pairs]

    def sum_over_ranks(self, parameters: list[nn.Parameter], rank: int, world_size: int) -> None:
        """Make each `.grad` the sum over all ranks, as a part of `flat`."""
        for parameter, part in zip(parameters, self.parts, strict=True):
            assert parameter.grad is not None
            part.copy_(parameter.grad)
            parameter.grad = part
        for exchange in exchanges(self.flat, rank, world_size, self.scratch):
            swap_with(exchange.partner, exchange.sent, exchange.received)
