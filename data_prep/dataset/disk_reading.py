"""Hashes a file as the disk holds it, slowly, and leaves the page cache as it was."""

import ctypes
import hashlib
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

_CHUNK_BYTES = 1 << 20
SMALLEST_CHARGE = 1 << 16  # bytes that even an empty file counts for: opening it costs as much
_HAS_FADVISE = hasattr(os, "posix_fadvise")  # not on macOS


@contextmanager
def opened_for_hashing(path: Path, descriptor: int | None) -> Iterator[int]:
    """`descriptor`, where the file is open already, or a new one of `path`."""
    if descriptor is not None:
        yield descriptor
        return
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would block for ever
    try:
        if _HAS_FADVISE:  # reading ahead would put into the cache what was not there
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_RANDOM)
        yield opened
    finally:
        os.close(opened)


def hash_from_disk(descriptor: int, pace: float, wait: Callable[[float], bool]) -> tuple[str, bool]:
    """sha256 of what the disk holds of an open file, and whether the page cache had the same.

    It reads at most `pace` bytes a second. `wait` sleeps for a time, which may be negative, and
    returns whether to give up; then the digest is empty.
    """
    digest, position, same = hashlib.sha256(), 0, True
    size = os.fstat(descriptor).st_size
    seen, stored = bytearray(_CHUNK_BYTES), bytearray(_CHUNK_BYTES)
    while True:
        began = time.monotonic()
        cached = is_cached(descriptor, position, min(_CHUNK_BYTES, size - position))
        got = os.preadv(descriptor, [stored], position)
        _drop(descriptor, position, got)
        if cached:  # then that was the cache, and this is the disk
            seen, stored = stored, seen
            got = os.preadv(descriptor, [stored], position)
            # Whole parts are compared without copies.
            same = same and (seen == stored if got == _CHUNK_BYTES else seen[:got] == stored[:got])
        digest.update(memoryview(stored)[:got])
        position += got
        if wait(max(got, SMALLEST_CHARGE) / pace - (time.monotonic() - began)):
            return "", same
        if got == 0:
            return digest.hexdigest(), same


def hash_file_from_disk(path: Path) -> tuple[str, bool]:
    """The same of a file, at full speed. What was just written must be flushed before."""
    with opened_for_hashing(path, None) as descriptor:
        return hash_from_disk(descriptor, float("inf"), lambda _: False)


def is_cached(descriptor: int, position: int, count: int) -> bool:
    """Whether the page cache has most of a part of a file; True where nobody can tell."""
    # Not preadv with RWF_NOWAIT: that makes the kernel fetch what is missing, and find it at times.
    pages = -(-count // mmap.PAGESIZE)
    if count <= 0 or not sys.platform.startswith("linux"):
        return True
    resident = (ctypes.c_ubyte * pages)()
    try:
        with mmap.mmap(descriptor, count, prot=mmap.PROT_READ, offset=position) as mapped:
            address = np.frombuffer(mapped, np.uint8).ctypes.data
            # The memory is never touched, so a file that becomes shorter does no harm.
            failed = _mincore()(ctypes.c_void_p(address), count, resident)
    except (OSError, ValueError):  # the file became shorter, or cannot be mapped
        return True
    return bool(failed) or 2 * bytes(resident).count(1) >= pages


@cache
def _mincore() -> Callable[..., int]:
    """Which pages of mapped memory are in the page cache, as the C library tells it."""
    # https://man7.org/linux/man-pages/man2/mincore.2.html
    return ctypes.CDLL(None).mincore


def _drop(descriptor: int, position: int, count: int) -> None:
    """Have the next reading of a part come from the disk."""
    if _HAS_FADVISE and count:  # 0 would mean the whole rest of the file
        os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)
