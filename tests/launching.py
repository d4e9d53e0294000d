"""Starts the project's scripts in processes of their own, as a user would."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from parallel.warm_process import WarmProcess, rank_environments, signal_all

REPO = Path(__file__).parent.parent
# One thread for each of two processes on two cores. HF_HUB_OFFLINE also turns telemetry off.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPO),
    "HF_HUB_OFFLINE": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
PRELOADED = (
    "torch._dynamo",
    "torch.distributed.run",
    "torch.nn.parallel",
    "train.main",
    "train.doctor",
    "eval.main",
    "eval.generate",
    "data_prep.preparation.options",
    "gigatoken",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pyarrow.parquet",
    "torch.utils.tensorboard",
)

_TORCH = find_spec("torch")
assert _TORCH is not None
assert _TORCH.origin is not None
TORCHRUN = Path(_TORCH.origin).parent / "distributed" / "run.py"

FORKING_LAUNCHER = "tests/programs/forking_launcher.py"

Done = subprocess.CompletedProcess[str]


def fresh_python(*arguments: str, timeout: float = 180) -> Done:
    """Run `python ARGUMENTS` in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def torchrun(processes: int, *arguments: str, timeout: float = 180) -> Done:
    """Run `torchrun --nproc_per_node=PROCESSES ARGUMENTS` in the repository.

    torchrun itself runs in a fork, and its ranks are forks of it.
    """
    words = ("--standalone", f"--nproc_per_node={processes}", *arguments)
    return _forked([ENVIRONMENT], (FORKING_LAUNCHER, str(TORCHRUN), *words), timeout)


def real_torchrun(processes: int, *arguments: str, timeout: float = 180) -> Done:
    """The same with ranks that are new processes, which import torch for seconds."""
    words = ("--standalone", f"--nproc_per_node={processes}", *arguments)
    return _forked([ENVIRONMENT], (str(TORCHRUN), *words), timeout)


def python(
    *arguments: str,
    timeout: float = 180,
    typed: str = "",
    folder: Path = REPO,
    repo: Path = REPO,
    **variables: str,
) -> Done:
    """Run `python SCRIPT` or `python -c CODE` in a fork, which saves the seconds of its imports.

    `typed` is its standard input, and `variables` are added to the environment. `repo` may be a
    copy of the repository; it must not change after the first call.
    """
    environment = ENVIRONMENT | {"PYTHONPATH": str(repo)} | variables
    return _forked([environment], arguments, timeout, typed, folder, repo)


def together(processes: int, *arguments: str, timeout: float = 180) -> Done:
    """Run several ranks without torchrun, for tests that do not depend on it."""
    return _forked(rank_environments(ENVIRONMENT, processes), arguments, timeout)


@dataclass
class Ranks:
    """Processes of a job that runs, and how they ended."""

    pids: list[int]
    codes: list[int] | None = None


@contextmanager
def running(processes: int, *arguments: str) -> Iterator[Ranks]:
    """Ranks that the block may kill; it ends when all have ended."""
    warm = _warm_process(REPO)
    words = (str(REPO / arguments[0]), *arguments[1:])
    with open(os.devnull, "r+") as nothing:
        environments = rank_environments(ENVIRONMENT, processes)
        ranks = Ranks(warm.start(words, (nothing, nothing, nothing), REPO, environments))
        try:
            yield ranks
        finally:
            ranks.codes = warm.wait(180)
            if ranks.codes is None:
                signal_all(ranks.pids, signal.SIGKILL)
                warm.wait()


@cache
def _warm_process(repo: Path) -> WarmProcess:
    """The process of this test process in whose forks scripts of `repo` start."""
    more = ("tests.compared_encoders",) if repo == REPO else ()
    warm = WarmProcess((*PRELOADED, *more), repo, ENVIRONMENT)
    atexit.register(warm.close)
    return warm


def _forked(
    environments: list[dict[str, str]],
    words: tuple[str, ...],
    timeout: float,
    typed: str = "",
    folder: Path = REPO,
    repo: Path = REPO,
) -> Done:
    """Run the same command in each environment, all at the same time, with a common output."""
    script = words[0] if words[0] == "-c" else str(repo / words[0])
    words = (script, *words[1:])
    warm = _warm_process(repo)
    with (
        tempfile.TemporaryFile("w+") as stdin,
        tempfile.TemporaryFile("w+", errors="replace") as stdout,
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
    ):
        stdin.write(typed)
        stdin.seek(0)
        pids = warm.start(words, (stdin, stdout, stderr), folder, environments)
        codes = warm.wait(timeout)
        if codes is None:
            signal_all(pids, signal.SIGKILL)
            warm.wait()
        for file in (stdout, stderr):
            file.seek(0)
        if codes is None:
            raise subprocess.TimeoutExpired(words, timeout, stdout.read(), stderr.read())
        code = next((code for code in codes if code != 0), 0)
        return subprocess.CompletedProcess(words, code, stdout.read(), stderr.read())
