"""Batches of evaluation: halved where memory runs out, split over ranks.

Batches are formed before anyone knows the world size, and each is scored by one rank. What comes
back is one number per item, so that sums in item order are the same on any number of ranks.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from parallel.collectives import raise_on_all_ranks, stop_on_all_ranks, sum_over_ranks
from parallel.ranks import Ranks

# Of float32 logits at a time: enough positions for fast matrix products, and little memory. The
# largest part of evaluation's memory otherwise: a batch's logits at once were 0.4 GB on a CPU.
LOGIT_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
FLOAT = 4  # bytes
ROUNDS_BETWEEN_POLLS = 8

log = logging.getLogger(__name__)


class Batch(Protocol):
    """Work for one forward pass that can be done in two as well."""

    @property
    def rows(self) -> int:
        """Rows of the pass; a single one cannot be halved."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of the pass, padding included."""
        ...

    def halves(self) -> Sequence[Self]:
        """The same work in two batches."""
        ...


B = TypeVar("B", bound=Batch)
R = TypeVar("R")
W = TypeVar("W")


class MemoryLimit:
    """How large a pass may be: unknown, until one runs out of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.most_tokens: int | None = None

    def run(self, batch: B, score: Callable[[B], R]) -> list[tuple[B, R]]:
        """What `score` gives for the batch, or for the parts into which it had to be cut.

        Raises: ValueError if one row alone is too much.
        """
        small = self.most_tokens is None or batch.tokens <= self.most_tokens
        found = self._try(batch, score) if small or batch.rows == 1 else None
        if found is not None:
            return [(batch, found)]
        return [pair for half in batch.halves() for pair in self.run(half, score)]

    def _try(self, batch: B, score: Callable[[B], R]) -> R | None:
        """None after running out of memory, of which nothing is held any more by then."""
        try:
            return score(batch)
        except torch.OutOfMemoryError as error:
            if batch.rows == 1:
                raise ValueError(
                    f"one row of {batch.tokens} tokens does not fit the memory of {self.device}; "
                    "use a device with more, or a smaller model"
                ) from error
        self.most_tokens = batch.tokens // 2
        log.warning("out of memory: batches of at most %d tokens from here", self.most_tokens)
        return None


def head_chunks(
    states: Tensor, targets: Tensor, vocabulary: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """States and targets of as many positions at a time as have LOGIT_BYTES of logits.

    Shapes: (N, C), (N) -> pieces of both along N.
    """
    positions = max(1, LOGIT_BYTES[states.device.type] // (FLOAT * vocabulary))
    return zip(states.split(positions), targets.split(positions), strict=True)


def split_over_ranks(
    batches: Sequence[W],
    score: Callable[[W], tuple[Sequence[int] | slice, Tensor]],
    rows: int,
    columns: int,
    ranks: Ranks,
) -> np.ndarray:
    """Score every batch on one of the ranks; all ranks get the whole table.

    `score` gives the rows of the table that a batch fills, and their float64 values.
    Shapes: (rows, columns) float64. Raises: ValueError on every rank if scoring failed on one;
    StopAgreed on every rank if one was asked to stop meanwhile.
    """
    table = torch.zeros(rows, columns, dtype=torch.float64, device=ranks.device)
    error: Exception | None = None
    for turn, first in enumerate(range(0, len(batches), ranks.world_size)):
        if turn % ROUNDS_BETWEEN_POLLS == 0:
            stop_on_all_ranks(ranks)
        share = batches[first + ranks.rank : first + ranks.world_size][:1]
        try:
            for batch in share if error is None else ():
                where, values = score(batch)
                table[where] = values
        except (ValueError, OSError, RuntimeError) as found:  # RuntimeError: out of memory
            error = found
    raise_on_all_ranks(error)
    return sum_over_ranks(table).cpu().numpy()
