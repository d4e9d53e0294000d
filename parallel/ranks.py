"""Which rank this process is, its device, and the few things ranks do together.

The only reader of torchrun's environment variables. One process without torchrun is world size 1
and needs no process group: every function here then returns its input.
"""

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.allocator import keep_large_blocks
from parallel.rendezvous import RendezvousStore, rendezvous
from parallel.shared_errors import UserErrorReport

# Of a GPU's memory, the hard limit of torch's allocator: NCCL and Triton allocate beside it.
# USABLE_SHARE in model/estimates/memory.py is something else: what a predicted peak may take.
TORCH_SHARE = 0.95
PR_SET_PDEATHSIG = 1  # of prctl(2)
# NCCL's threads would end a process at a peer's death, or after 480 s without a sign of life,
# before it has saved its state, or free a stuck update to run on garbage. Where ours watch:
NCCL_WATCHES_NOTHING = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
}


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among all processes of the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    poll_stop: Callable[[], bool] = _never
    """Whether this process was asked to stop."""

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes files and talks."""
        return self.rank == 0


def rank_from_environment() -> int:
    """This process's global rank before any process group exists; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def job_id() -> str:
    """The batch job that this process belongs to; empty without one."""
    return os.environ.get("SLURM_JOB_ID", "")


def is_restart() -> bool:
    """Whether no person started this process: torchrun did after a failure, or SLURM's requeue."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)


def allocator_chosen() -> bool:
    """Whether the user has said by glibc's own variables what becomes of freed memory."""
    names = ("MMAP_MAX_", "MMAP_THRESHOLD_", "TOP_PAD_", "TRIM_THRESHOLD_")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name}" in os.environ for name in names) or "glibc.malloc" in tunables


def exit_with_launcher() -> None:
    """Let the kernel kill this process when its torchrun dies, however that happens.

    Workers without it train on as orphans, and the job that replaces them finds the folder taken.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if "TORCHELASTIC_RUN_ID" not in os.environ or prctl is None:
        return
    launcher = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def prevent_restart() -> None:
    """Ask torchrun not to start the job again, for this end is meant; it would restart any failure.

    It then ends with code 1, whatever the ranks return.
    """
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    left = most > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if "TORCHELASTIC_RUN_ID" in os.environ and left and os.environ.get("LOCAL_RANK") == "0":
        os.kill(os.getppid(), signal.SIGTERM)


def silence_other_ranks() -> None:
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
    """Turn a ValueError into one sentence on standard error and exit code 2, told by one rank."""
    mistake = UserErrorReport(rank_from_environment(), int(os.environ.get("LOCAL_RANK", "0")))
    try:
        with mistake.print_on_rank_0():
            yield
    except SystemExit as end:
        try:
            mistake.print_own(end.code)  # if torchrun stops it meanwhile, that needs no dismissal
            prevent_restart()
        finally:
            stop()
        raise


def start(
    device: str = "auto",
    timeout_seconds: float = 1800,
    deterministic: bool = False,
    watched: bool = False,
) -> Ranks:
    """Join the job that torchrun started (or stand alone) and pick this rank's device.

    `device` is auto, cpu or cuda; auto takes CUDA where there is one. `deterministic` makes CUDA
    give the same bits each time, as the CPU always does. `watched` says that the caller ends a
    process which waits for NCCL too long; otherwise NCCL does, after `timeout_seconds`.
    Raises: ValueError for a device that is not there or has too few GPUs for the local ranks, or
    naming the ranks that do not come.
    """
    exit_with_launcher()
    if deterministic:
        enable_determinism()
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    use_cuda = _wants_cuda(device, local_world_size)
    place = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        for name, value in NCCL_WATCHES_NOTHING.items() if watched else ():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(place)
        # NCCL and Triton take memory beside torch's; where it has left them none, their error is
        # not torch's OutOfMemoryError (https://github.com/rwth-i6/returnn/issues/1626).
        torch.cuda.set_per_process_memory_fraction(TORCH_SHARE, place)
        torch.set_float32_matmul_precision("high")  # TF32, alike in training and evaluation
    elif not allocator_chosen():
        keep_large_blocks()
    rank = rank_from_environment()
    if world_size > 1:
        store = rendezvous(_meeting_place(world_size == local_world_size), rank, world_size)
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=place if use_cuda else None,
        )
        del store  # now torch holds the server, if it is rank 0's
        if use_cuda and watched:
            # Until the caller sets another time. Data may be staged meanwhile, which takes long.
            told = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(2 * timeout_seconds, exit=True, file=told)
    return Ranks(rank, world_size, local_rank, local_world_size, place)


def _meeting_place(one_machine: bool) -> RendezvousStore:
    """Where torchrun lets the ranks find each other."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None or port is None:
        raise ValueError(
            "WORLD_SIZE is above 1 but MASTER_ADDR or MASTER_PORT is not set; start with torchrun"
        )
    # Each machine's torchrun counts for itself, and only the failures of its own ranks.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if one_machine else ""
    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return RendezvousStore(host, int(port), attempt, by_launcher)


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


def enable_determinism() -> None:
    """Only kernels and reductions that give the same bits each time; before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # NVLS adds in varying order: https://github.com/NVIDIA/nccl/issues/1497
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)  # has no deterministic backward


def stop() -> None:
    """Leave the process group, if there is one; nobody may hold a replica any more.

    A replica that is freed last takes the group along while it holds Python's lock, which a thread
    of gloo's may want for a last tensor: neither ever ends (met in 3 of 110 runs of two ranks).
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
