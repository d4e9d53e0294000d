"""Work dealt to ranks so that the answer does not depend on how many there are.

Batches are formed before anyone knows the world size, each is scored whole by one rank, and what
comes back is one number per item: adding them up in item order is then the same everywhere.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from parallel.ranks import Ranks, from_main, raise_together, stop_together, sum_over_ranks

B = TypeVar("B")
T = TypeVar("T")
ROUNDS_BETWEEN_POLLS = 8


def deal(
    batches: Sequence[B],
    score: Callable[[B], tuple[Sequence[int] | slice, Tensor]],
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
            stop_together(ranks)
        share = batches[first + ranks.rank : first + ranks.world_size][:1]
        try:
            for batch in share if error is None else ():
                where, values = score(batch)
                table[where] = values
        except (ValueError, OSError, RuntimeError) as found:  # RuntimeError: out of memory
            error = found
    raise_together(error)
    return sum_over_ranks(table).cpu().numpy()


def on_main(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` gives on rank 0, on every rank. Raises: ValueError on all if it fails there."""
    value, error = None, None
    if ranks.is_main:
        try:
            value = action()
        except (ValueError, OSError) as found:
            error = found
    raise_together(error)
    return from_main(value)  # type: ignore[return-value]
