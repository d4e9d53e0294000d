"""What ranks do together: sums, broadcasts, shared errors and agreed stops.

One process without a process group is a job of one rank: every function then returns its input.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel.ranks import Ranks
from parallel.shared_errors import SharedError
from storage.user_errors import os_error_text

_T = TypeVar("_T")


class StopAgreed(Exception):
    """All ranks leave a piece of work unfinished because one of them was asked to stop."""


def set_collective_timeout(seconds: float) -> None:
    """Set the timeout of gloo collectives. NCCL's cannot be changed after the start."""
    if dist.is_initialized() and dist.get_backend() == "gloo":
        set_timeout = getattr(distributed_c10d, "_set_pg_timeout", None)
        if set_timeout is not None:
            set_timeout(timedelta(seconds=seconds))


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place."""
    if dist.is_initialized():
        # gloo has no AVG, so a mean is a sum that the caller divides.
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def swap_with(rank: int, sent: torch.Tensor, received: torch.Tensor) -> None:
    """Send a tensor to another rank and receive one from it, which calls this too."""
    send = dist.P2POp(dist.isend, sent, rank)
    receive = dist.P2POp(dist.irecv, received, rank)
    for work in dist.batch_isend_irecv([send, receive]):
        # gloo's pairs keep the timeout of the start, whatever `set_collective_timeout` says. With
        # NCCL, waiting for a given time would block the host.
        if sent.device.type == "cpu":
            work.wait(_timeout_of_gloo())
        else:
            work.wait()


def _timeout_of_gloo() -> timedelta:
    backend = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    return getattr(getattr(backend, "options", None), "_timeout", timedelta(minutes=30))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on at least one rank. All ranks call this together."""
    if not dist.is_initialized():
        return flag
    return sum_over_ranks(torch.tensor(float(flag), device=device)).item() > 0


def stop_on_all_ranks(ranks: Ranks) -> None:
    """Leave long work if one rank was asked to stop. All ranks call this at the same points.

    Raises: StopAgreed on all ranks or on none.
    """
    if any_rank(ranks.poll_stop(), ranks.device):
        raise StopAgreed


def broadcast_object(value: _T) -> _T:
    """Rank 0's `value`, on every rank. It is pickled, but only between processes of this job."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: _T) -> list[_T]:
    """Every rank's `value`, in the order of ranks, on every rank. Pickled as above."""
    if not dist.is_initialized():
        return [value]
    box = [value] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def raise_on_all_ranks(error: Exception | None) -> None:
    """Raise the first rank's error on every rank, so that no rank waits for one that has left.

    Every rank calls this with its own error or None. Raises: SharedError with that error's message.
    """
    own = os_error_text(error) if isinstance(error, OSError) else error and str(error)
    for rank, message in enumerate(all_gather_object(own)):
        if message is not None:
            raise SharedError(f"rank {rank}: {message}" if rank else message) from error


def together(action: Callable[[], _T]) -> _T:
    """Run `action` on every rank and return this rank's result. All ranks call this together.

    Raises: SharedError on every rank if `action` raised ValueError or OSError on one of them.
    """
    return _result_of(action, here=True)


def on_main(action: Callable[[], _T]) -> _T:
    """Run `action` on rank 0 and return its result on every rank. All ranks call this together.

    Raises: SharedError on every rank if `action` raised ValueError or OSError.
    """
    here = not dist.is_initialized() or dist.get_rank() == 0
    return broadcast_object(_result_of(action, here))


def _result_of(action: Callable[[], _T], here: bool) -> _T:
    """What `action` returns if it runs here; every rank then learns whether it failed on one."""
    value, error = None, None
    try:
        value = action() if here else None
    except (ValueError, OSError) as found:
        error = found
    raise_on_all_ranks(error)
    return cast(_T, value)
