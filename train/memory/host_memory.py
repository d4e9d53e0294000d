"""Bytes of host memory: what this process holds, and what this machine has left (Linux)."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

PROCESS = Path("/proc/self")
CGROUPS = Path("/sys/fs/cgroup")
LARGE_BLOCK = 64 * 2**20  # above glibc's largest threshold, 32 MiB
WITHOUT_PROC = 8 * 2**30  # assumed to be free where the system does not say


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """This process's resident bytes, now or at most; 0 where the system does not say."""
    return _named_line(PROCESS / "status", field) or 0


def forget_peak() -> None:
    """Let the most resident bytes be counted anew from here on, where the kernel can."""
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def available() -> int:
    """Bytes that new work may take: the machine's, or less in a job's control group."""
    free = _named_line(Path("/proc/meminfo"), "MemAvailable") or WITHOUT_PROC
    return min([free, *_left_in_groups()])


def keeps_large_blocks() -> bool:
    """Whether this process's allocator keeps large freed blocks, by letting it make one.

    glibc maps those apart and gives them back, unless M_MMAP_MAX (mallopt, or MALLOC_MMAP_MAX_) is
    0: then they come from its heap, which rarely shrinks.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return False
    mallinfo.restype = _MallInfo
    before = mallinfo().hblks
    block = torch.empty(LARGE_BLOCK, dtype=torch.uint8)
    mapped = mallinfo().hblks - before
    del block
    return mapped == 0


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h; hblks is the number of blocks mapped apart."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _left_in_groups() -> list[int]:
    """What each control group around this process (version 2) still allows."""
    try:
        lines = (PROCESS / "cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group, left = CGROUPS / own.lstrip("/"), []
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            # Files in the page cache count as used and give way.
            left.append(limit - used + (_named_line(folder / "memory.stat", "inactive_file") or 0))
    return left


def _named_line(path: Path, name: str) -> int | None:
    """Bytes in the line that begins with `name`, in kB where it says so; None without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith(name)), None)
    if words is None:
        return None
    return int(words[1]) * (1024 if words[-1] == "kB" else 1)
