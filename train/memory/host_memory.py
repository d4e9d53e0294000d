"""Host memory in bytes on Linux: used by this process, and available on this machine."""

import ctypes
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

_PROCESS = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
_LARGE_BLOCK = 64 * 2**20  # above glibc's largest threshold, 32 MiB
_WITHOUT_PROC = 8 * 2**30  # assumed to be available where there is no /proc


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Resident memory of this process: now (VmRSS) or its peak (VmHWM); 0 without /proc."""
    return _bytes_in_line(_PROCESS / "status", field) or 0


def forget_peak() -> None:
    """Reset the peak of resident memory, if the kernel allows it."""
    # 5 resets VmHWM, see clear_refs in https://docs.kernel.org/filesystems/proc.html
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")


def available() -> int:
    """Memory that new work can use: of the machine, or of the job's control group if less."""
    free = _bytes_in_line(Path("/proc/meminfo"), "MemAvailable") or _WITHOUT_PROC
    return min([free, *_available_in_groups()])


def keeps_large_blocks() -> bool:
    """Whether this process's allocator keeps large freed blocks. It allocates one to find out."""
    # glibc gives a large block a mapping of its own and returns it to the kernel when it is freed,
    # unless M_MMAP_MAX (set by mallopt or MALLOC_MMAP_MAX_) is 0. Then the block comes from the
    # heap, which rarely shrinks.
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return False
    mallinfo.restype = _MallInfo
    before = mallinfo().hblks
    block = torch.empty(_LARGE_BLOCK, dtype=torch.uint8)
    mapped = mallinfo().hblks - before
    del block
    return mapped == 0


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h; hblks is the number of blocks with a mapping of their own."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _available_in_groups() -> list[int]:
    """Memory that each control group (version 2) around this process still allows."""
    try:
        lines = (_PROCESS / "cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group, left = _CGROUPS / own.lstrip("/"), []
    for folder in (group, *group.parents):
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            # Files in the page cache count as used, but the kernel drops them on demand.
            left.append(
                limit - used + (_bytes_in_line(folder / "memory.stat", "inactive_file") or 0)
            )
    return left


def _bytes_in_line(path: Path, name: str) -> int | None:
    """Value in bytes of the line that begins with `name`, also if it is in kB; None without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith(name)), None)
    if words is None:
        return None
    return int(words[1]) * (1024 if words[-1] == "kB" else 1)
