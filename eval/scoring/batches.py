"""Runs batches of an evaluation on all ranks, and halves one that runs out of memory.

Batches do not depend on the number of ranks, and one rank scores a whole batch. Every rank gets
one row of numbers per item and adds them up in item order, so the result has the same bits for
any number of ranks (on the CPU).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from parallel.collectives import raise_on_all_ranks, stop_on_all_ranks, sum_over_ranks
from parallel.ranks import Ranks

# Size of the float32 logits in memory at one time. This is enough positions for fast matrix
# products. All logits of a batch at once took 0.4 GB on a CPU, and most of the system time went
# to page faults (bench/LOG.md, "page faults of evaluation").
_LOGIT_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}
_FLOAT_BYTES = 4
_ROUNDS_BETWEEN_POLLS = 8  # a poll is a collective of all ranks

log = logging.getLogger(__name__)


class _HalvableBatch(Protocol):
    """The input of one forward pass, which can be split into two."""

    @property
    def rows(self) -> int:
        """Rows of the forward pass; a batch of one row cannot be halved."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of the forward pass, including padding."""
        ...

    def halves(self) -> Sequence[Self]:
        """The same rows as two batches."""
        ...


_B = TypeVar("_B", bound=_HalvableBatch)
_R = TypeVar("_R")
_W = TypeVar("_W")


class MemoryLimit:
    """The largest batch that fits in memory; unknown until a batch runs out of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.max_tokens: int | None = None

    def run(self, batch: _B, score: Callable[[_B], _R]) -> list[tuple[_B, _R]]:
        """Score the batch, in parts if it is too large. Returns each part with its result.

        Raises: ValueError if a single row does not fit in memory.
        """
        may_fit = self.max_tokens is None or batch.tokens <= self.max_tokens
        result = self._try(batch, score) if may_fit or batch.rows == 1 else None
        if result is not None:
            return [(batch, result)]
        return [pair for half in batch.halves() for pair in self.run(half, score)]

    def _try(self, batch: _B, score: Callable[[_B], _R]) -> _R | None:
        """The result; None if memory ran out.

        The caller retries after this function has returned, because only then are the tensors
        freed to which the exception's traceback refers.
        """
        try:
            return score(batch)
        except torch.OutOfMemoryError as error:
            if batch.rows == 1:
                raise ValueError(
                    f"one row of {batch.tokens} tokens does not fit the memory of {self.device}; "
                    "use a device with more memory, or a smaller model"
                ) from error
        self.max_tokens = batch.tokens // 2
        log.warning("out of memory: batches of at most %d tokens from now on", self.max_tokens)
        return None


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device. To a GPU it is copied beside what runs there."""
    host = torch.from_numpy(array)
    if device.type != "cuda":
        return host.to(device)
    # Only pinned memory is copied without waiting for the kernels queued before. torch keeps the
    # buffer until the copy is done, and uses it again.
    return host.pin_memory().to(device, non_blocking=True)


def head_chunks(
    states: Tensor, targets: Tensor, vocabulary: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Split states and targets into chunks whose logits take at most _LOGIT_BYTES.

    Shapes: (N, C), (N,) -> chunks of both along N.
    """
    positions = max(1, _LOGIT_BYTES[states.device.type] // (_FLOAT_BYTES * vocabulary))
    return zip(states.split(positions), targets.split(positions), strict=True)


def split_over_ranks(
    batches: Sequence[_W],
    score: Callable[[_W], tuple[Sequence[int] | slice, Tensor]],
    rows: int,
    columns: int,
    ranks: Ranks,
) -> np.ndarray:
    """Score each batch on one of the ranks. Every rank returns the complete table.

    `score` returns the indices of the table rows that a batch fills, and their float64 values.
    Shapes: (rows, columns) float64. Raises: ValueError on every rank if scoring failed on one;
    StopAgreed on every rank if one of them received a stop request.
    """
    table = torch.zeros(rows, columns, dtype=torch.float64, device=ranks.device)
    error: Exception | None = None
    for turn, first in enumerate(range(0, len(batches), ranks.world_size)):
        if turn % _ROUNDS_BETWEEN_POLLS == 0:
            stop_on_all_ranks(ranks)
        share = batches[first + ranks.rank : first + ranks.world_size][:1]
        try:
            # A rank that failed stays in the loop: the others would wait for it in the poll above.
            for batch in share if error is None else ():
                where, values = score(batch)
                table[where] = values
        except (ValueError, OSError, RuntimeError) as found:  # RuntimeError: out of memory
            error = found
    raise_on_all_ranks(error)
    return sum_over_ranks(table).cpu().numpy()
