"""Starts the project's scripts as a user would: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parent.parent
# Two processes on two cores: one thread each, and no download counters or telemetry.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPO),
    "HF_HUB_OFFLINE": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def python(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPO,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def torchrun(
    processes: int, *arguments: str, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc_per_node=PROCESSES ARGUMENTS` in the repository."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return python(*launcher, *arguments, timeout=timeout)
