"""Provenance of a benchmark's numbers: commit, date, command, machine, versions."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def provenance(packages: Iterable[str]) -> dict[str, Any]:
    """The head of every results file. Call it before the measurement, because it has the load."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return {
        "commit": commit_of_sources(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_launcher(), name, *map(_without_folder, sys.argv[1:])]),
        "hardware": f"{_cpu_model()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {package: _version(package) for package in packages},
    }


def commit_of_sources() -> str:
    """The commit, with `-dirty` if code differs from it. Results and notes do not count as code."""
    changed = ["diff", "--quiet", "HEAD", "--", ".", ":(exclude)bench/results", ":(exclude)*.md"]
    try:
        head = _git("rev-parse", "--short", "HEAD")
        dirty = _git(*changed).returncode == 1
    except FileNotFoundError:
        return "unknown"
    return (head.stdout.strip() + "-dirty" * dirty) if head.returncode == 0 else "unknown"


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _cpu_model() -> str:
    """The name of the processor from /proc/cpuinfo, or else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if "model name" in line)
    return next(names, platform.processor() or platform.machine())


def _launcher() -> list[str]:
    """The words of the command line before the script."""
    if dist.is_initialized():
        return ["torchrun", f"--nproc_per_node={dist.get_world_size()}"]
    return ["python"]


def _without_folder(word: str) -> str:
    """The word, with the folder removed from a path outside the project.

    Results are published, and such a path would show how this machine is organised.
    """
    head, sign, path = word.rpartition("=")
    place = Path(path)
    if place.is_absolute() and place.is_relative_to(ROOT):
        path = str(place.relative_to(ROOT))
    elif place.is_absolute() or ".." in place.parts:
        path = place.name
    return head + sign + path


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
