"""What ranks do together: sums, broadcasts, shared errors and agreed stops.

Without a process group (one process) every function here returns its input.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel.ranks import Ranks
from parallel.shared_errors import SharedError

T = TypeVar("T")


class StopAgreed(Exception):
    """All ranks leave a piece of work unfinished because one of them was asked to stop."""


def set_collective_timeout(seconds: float) -> None:
    """From now on a collective of the CPU fails after waiting so long for a silent rank."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        set_timeout = getattr(distributed_c10d, "_set_pg_timeout", None)
        if set_timeout is not None:
            set_timeout(timedelta(seconds=seconds))


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks in place (gloo has no AVG, so means are sums divided)."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on one rank at least; all ranks ask together."""
    if not dist.is_initialized():
        return flag
    return sum_over_ranks(torch.tensor(float(flag), device=device)).item() > 0


def stop_on_all_ranks(ranks: Ranks) -> None:
    """Long work calls this at the same points on every rank. Raises: StopAgreed on all or none."""
    if any_rank(ranks.stop_wanted(), ranks.device):
        raise StopAgreed


def broadcast_object(value: T) -> T:
    """Rank 0's `value` on every rank (pickled between our own processes only)."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: T) -> list[T]:
    """Every rank's `value`, by rank (pickled between our own processes only)."""
    if not dist.is_initialized():
        return [value]
    box = [value] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def raise_on_all_ranks(error: Exception | None) -> None:
    """Raise the first rank's error on every rank, so that no rank waits for one that left.

    Every rank calls this with its own error or None. Raises: SharedError with that message.
    """
    for rank, message in enumerate(all_gather_object(None if error is None else str(error))):
        if message is not None:
            raise SharedError(f"rank {rank}: {message}" if rank else message) from error


def on_main(action: Callable[[], T], ranks: Ranks) -> T:
    """What `action` gives on rank 0, on every rank. Raises: ValueError on all if it fails there."""
    value, error = None, None
    if ranks.is_main:
        try:
            value = action()
        except (ValueError, OSError) as found:
            error = found
    raise_on_all_ranks(error)
    return broadcast_object(value)  # type: ignore[return-value]
