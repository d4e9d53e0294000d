"""Starts and ends this process as one rank of a job: rank, device, process group, logging.

Only this file reads the environment. A process without torchrun is a job of one rank and has no
process group.
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
from pathlib import Path

import torch
import torch.distributed as dist

from parallel.addresses import reachable_host
from parallel.allocator import keep_large_blocks
from parallel.device_choice import wants_cuda
from parallel.job_variables import JobNumbers, check_not_alone, job_numbers
from parallel.rendezvous import RendezvousStore, rendezvous
from parallel.shared_errors import UserErrorReport
from storage.exit_codes import INTERRUPTED_CODE
from storage.option_values import own_path
from storage.terminal.standard_output import tolerate_lost_output

# Of a GPU's memory, the hard limit of torch's allocator: NCCL and Triton allocate beside it.
# USABLE_SHARE in model/estimates/memory.py is something else: what a predicted peak may take.
TORCH_SHARE = 0.95
_PR_SET_PDEATHSIG = 1  # see https://man7.org/linux/man-pages/man2/prctl.2.html
LAUNCHER = "RATCHET_LAUNCHER"  # the process id of parallel/launcher.py, in its children
# NCCL's watchdog threads would end a process when a peer dies, or after 480 s without a heartbeat,
# and so before it has saved its state. They could also abort a collective that hangs, so that the
# update behind it runs with garbage. A caller that watches for hangs itself turns them off:
# https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html
NCCL_WITHOUT_WATCHDOGS = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",
}


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Ranks:
    """Rank and device of this process, and the number of processes."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    poll_stop: Callable[[], bool] = _never
    """Whether this process was asked to stop."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes files and logs at INFO."""
        return self.rank == 0


def rank_from_environment() -> int:
    """Global rank of this process, known before a process group exists; 0 without torchrun.

    Also 0 where the variables contradict each other, so that this process prints the error.
    """
    return _numbers_or_one_process().rank


def world_size_from_environment() -> int:
    """Number of processes of the job, known before a process group exists; 1 without torchrun."""
    return _numbers_or_one_process().world_size


def _numbers_or_one_process() -> JobNumbers:
    try:
        return job_numbers(os.environ)
    except ValueError:
        return JobNumbers()


def job_id() -> str:
    """Id of the SLURM job of this process; empty without one."""
    return os.environ.get("SLURM_JOB_ID", "")


def job_folder() -> Path | None:
    """The folder of this machine's launcher, which outlives restarts; None without a launcher."""
    # FOLDER/attempt_0/RANK/error.json
    error_file = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    named = len(error_file.parents) > 2 and error_file.parents[1].name.startswith("attempt_")
    return error_file.parents[2] if named and error_file.parents[2].is_dir() else None


def cache_folder() -> Path:
    """Where this user's imported models are kept: RATCHET_CACHE, or as XDG_CACHE_HOME says."""
    own, shared = os.environ.get("RATCHET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return own_path(own) if own else own_path(shared or "~/.cache") / "ratchet"


def is_restart() -> bool:
    """Whether torchrun restarted this process after a failure, or SLURM requeued its job."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)


def allocator_chosen() -> bool:
    """Whether the user has set glibc's own variables for freed memory."""
    names = ("MMAP_MAX_", "MMAP_THRESHOLD_", "TOP_PAD_", "TRIM_THRESHOLD_")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name}" in os.environ for name in names) or "glibc.malloc" in tunables


def exit_with_torchrun() -> None:
    """Let the kernel kill this process when its torchrun process ends for any reason."""
    # Without it the workers of a torchrun that gets SIGKILL continue to train as orphans, and the
    # job that replaces them finds the run folder locked.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if "TORCHELASTIC_RUN_ID" not in os.environ or prctl is None:
        return
    torchrun = os.getppid()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != torchrun:  # it ended before the call above took effect
        os.kill(os.getpid(), signal.SIGKILL)


def prevent_restart() -> None:
    """Ask torchrun not to restart the job, because this exit is intentional."""
    # torchrun restarts on any non-zero exit code, but on SIGTERM it ends all ranks and itself (see
    # SignalException in torch/distributed/elastic/agent/server/api.py). Its exit code is then 1,
    # whatever the ranks return.
    # parallel/launcher.py knows from the exit code.
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get(LAUNCHER) == str(parent):
        return
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    left = most > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if left and os.environ.get("LOCAL_RANK") == "0":
        os.kill(parent, signal.SIGTERM)


def silence_other_ranks() -> None:
    """Log at INFO to standard output on rank 0, at ERROR to standard error on the others."""
    tolerate_lost_output()
    rank = rank_from_environment()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    stream = sys.stdout if rank == 0 else sys.stderr
    # Other libraries log at WARNING: the Hub's library would log every request at INFO.
    level = logging.WARNING if rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format=f"{prefix}%(message)s", stream=stream)
    if rank == 0:
        for ours in ("storage", "data_prep", "model", "parallel", "eval", "train"):
            logging.getLogger(ours).setLevel(logging.INFO)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Turn a Ctrl-C that nothing else handles into one word and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        if rank_from_environment() == 0:
            sys.stderr.write("interrupted\n")
        prevent_restart()
        stop()
        raise SystemExit(INTERRUPTED_CODE) from None


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError into one sentence on standard error, printed once, and exit code 2.

    An environment whose variables contradict each other is such an error too. A Ctrl-C that nothing
    else handles ends the process at once, with exit code 130.
    """
    numbers = _numbers_or_one_process()
    report = UserErrorReport(numbers.rank, numbers.local_rank)
    with exit_on_interrupt():
        try:
            with report.print_on_rank_0():
                job_numbers(os.environ)
                yield
        except SystemExit as end:
            try:
                # May wait. If torchrun stops this rank meanwhile, it does not restart.
                report.print_own(end.code)
                prevent_restart()
            finally:
                stop()
            raise


def start(
    device: str = "auto",
    timeout_seconds: float = 1800,
    deterministic: bool = False,
    watched: bool = False,
    whole_job: bool = False,
) -> Ranks:
    """Join the job that torchrun started, or be a job of one rank, and choose the device.

    `device` is auto, cpu or cuda; auto is CUDA if there is a GPU. `deterministic` makes CUDA give
    the same bits each time, as the CPU always does. `watched`: the caller detects hangs itself;
    otherwise NCCL ends a process that waits longer than `timeout_seconds`. `whole_job`: all tasks
    of a batch job are meant for this program.
    Raises: ValueError if the environment says that this is one of several processes but not which,
    if the device is missing or has too few GPUs for the local ranks, or if some ranks do not
    arrive (it names them).
    """
    exit_with_torchrun()
    if deterministic:
        _enable_determinism()
    numbers = job_numbers(os.environ)
    check_not_alone(os.environ, whole_job)
    rank, world_size = numbers.rank, numbers.world_size
    use_cuda = wants_cuda(device, numbers.local_world_size)
    own = torch.device("cuda", numbers.local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        for name, value in NCCL_WITHOUT_WATCHDOGS.items() if watched else ():
            os.environ.setdefault(name, value)
        torch.cuda.set_device(own)
        # NCCL and Triton allocate memory outside of torch. If torch leaves them none, their error
        # is not torch's OutOfMemoryError: https://github.com/rwth-i6/returnn/issues/1626
        torch.cuda.set_per_process_memory_fraction(TORCH_SHARE, own)
        torch.set_float32_matmul_precision("high")  # TF32, the same in training and evaluation
    elif not allocator_chosen():
        keep_large_blocks()
    if world_size > 1:
        one_machine = world_size == numbers.local_world_size
        store = rendezvous(_rendezvous_store(one_machine), rank, world_size)
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            timeout=timedelta(seconds=timeout_seconds),
            device_id=own if use_cuda else None,
        )
        del store  # from here on the process group keeps the server alive, if rank 0 serves it
        if use_cuda and watched:
            # Ends a start that hangs, until the caller sets its own time. Long, because the data
            # set may be copied to the local disk meanwhile.
            stderr = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(2 * timeout_seconds, exit=True, file=stderr)
    return Ranks(rank, world_size, numbers.local_rank, numbers.local_world_size, own)


def _rendezvous_store(one_machine: bool) -> RendezvousStore:
    """The address of the store in which the ranks find each other, from torchrun's variables."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    host = reachable_host(host, int(port), one_machine)
    os.environ["MASTER_ADDR"] = host  # torch reads it when it makes the process group
    # With several machines the restart count differs: each torchrun counts only failures of its own
    # ranks.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "") if one_machine else ""
    by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return RendezvousStore(host, int(port), attempt, by_torchrun)


def _enable_determinism() -> None:
    """Use only kernels and reductions that give the same bits each time.

    Must be called before CUDA is first used.
    """
    # https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # NVLS adds in a varying order: https://github.com/NVIDIA/nccl/issues/1497
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)  # has no deterministic backward


def stop() -> None:
    """Leave the process group, if there is one. Every DDP replica must have been freed before."""
    # A replica that is freed after this call destroys the group while it holds Python's lock. A
    # thread of gloo may wait for that lock to free a last tensor, and both hang for ever (in 3 of
    # 110 runs of two ranks, see bench/LOG.md).
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
