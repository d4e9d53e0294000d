"""What a step asks of the way in which gradients and losses are summed, and the two ways."""

from contextlib import AbstractContextManager
from typing import Literal, Protocol

from torch import Tensor, nn

from parallel.data_parallel import DdpReduction
from parallel.ranks import Ranks
from parallel.tree_reduction import TreeReduction


class Reduction(Protocol):
    """Sums the gradients and losses of a step over micro-batches and ranks.

    A step calls `begin`, then for each micro-batch `micro_step` and in it `add`, then `finish`.
    """

    module: nn.Module
    """Network and loss, as a step calls them."""

    def begin(self, micro_batches: int) -> int:
        """Forget what was summed so far; a step of `micro_batches` on this rank follows.

        Returns the number by which each of its losses must be divided.
        """
        ...

    def micro_step(self, number: int) -> AbstractContextManager[None]:
        """Must enclose forward and backward pass of this rank's micro-batch `number`."""
        ...

    def add(self, loss: Tensor) -> None:
        """Note that the backward pass of the next micro-batch is done. Shape: ()."""
        ...

    def finish(self, values: Tensor) -> None:
        """Sum gradients (in `.grad`) and `values` (in place) over ranks.

        The first value becomes the mean loss of the step. Nothing that ranks do together follows.
        Shape: (n,) float64, the first one 0.
        """
        ...


def reduction_of(
    kind: Literal["ddp", "tree"],
    module: nn.Module,
    ranks: Ranks,
    compression: Literal["none", "bfloat16"] = "none",
) -> Reduction:
    """The reduction of this name. `compression` is the number format in which DDP exchanges."""
    if kind == "tree":
        return TreeReduction(module, ranks)
    return DdpReduction(module, ranks, compression)
