"""Which rank this process is, its device, and the few things ranks do together.

The only reader of torchrun's environment variables. One process without torchrun is world size 1
and needs no process group: every function here then returns its input.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
LAST_WORD_SECONDS = 3.0


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among all processes of the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes files and talks."""
        return self.rank == 0


def rank_from_environment() -> int:
    """This process's global rank before any process group exists; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def quiet_other_ranks() -> None:
    """Log at INFO on rank 0, at ERROR and on standard error elsewhere."""
    rank = rank_from_environment()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    stream = sys.stdout if rank == 0 else sys.stderr
    # Libraries only warn: the Hub's would log every request.
    quietest = logging.WARNING if rank == 0 else logging.ERROR
    logging.basicConfig(level=quietest, format=f"{prefix}%(message)s", stream=stream)
    if rank == 0:
        for ours in ("storage", "data_prep", "model", "parallel", "eval", "train"):
            logging.getLogger(ours).setLevel(logging.INFO)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError into one sentence on standard error and exit code 2, said once by rank 0.

    The other ranks keep silent and leave last: torchrun ends everyone when the first one leaves.
    """
    rank = rank_from_environment()
    silence = nullcontext() if rank == 0 else redirect_stderr(io.StringIO())
    try:
        with silence:
            yield
    except (ValueError, SystemExit) as error:
        code = error.code if isinstance(error, SystemExit) else 2
        if rank != 0:
            time.sleep(LAST_WORD_SECONDS)
        elif isinstance(error, ValueError):
            sys.stderr.write(f"error: {error}\n")
        stop()
        raise SystemExit(code) from None


def start(device: str = "auto", timeout_seconds: float = 1800) -> Ranks:
    """Join the job that torchrun started (or stand alone) and pick this rank's device.

    `device` is auto, cpu or cuda; auto takes CUDA where there is one.
    Raises: ValueError for a device that is not there or has too few GPUs for the local ranks.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_cuda = _wants_cuda(device, local_world_size)
    place = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
        torch.set_float32_matmul_precision("high")  # TF32, alike in training and evaluation
    if world_size > 1:
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=place if use_cuda else None,
        )
    return Ranks(rank_from_environment(), world_size, local_rank, local_world_size, place)


def _wants_cuda(device: str, local_world_size: int) -> bool:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device} is not known; use auto, cpu or cuda")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and gpus == 0):
        return False
    if gpus == 0:
        raise ValueError("device=cuda but torch finds no CUDA GPU; use --device cpu or auto")
    if local_world_size > gpus:
        raise ValueError(
            f"nproc_per_node={local_world_size} is more than the {gpus} GPUs of this machine; "
            f"start torchrun with --nproc_per_node={gpus}"
        )
    return True


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks in place (gloo has no AVG, so means are sums divided)."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def from_main(value: T) -> T:
    """Rank 0's `value` on every rank (pickled between our own processes only)."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def raise_together(error: Exception | None) -> None:
    """Raise the first rank's error on every rank, so that no rank waits for one that left.

    Every rank calls this with its own error or None. Raises: ValueError with that message.
    """
    messages: list[str | None] = [None if error is None else str(error)]
    if dist.is_initialized():
        own = messages[0]
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, own)
    for rank, message in enumerate(messages):
        if message is not None:
            where = "" if rank == 0 or len(messages) == 1 else f"rank {rank}: "
            raise ValueError(where + message) from error
