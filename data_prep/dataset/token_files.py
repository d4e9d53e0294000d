"""Reads tokens by position from several files, as if they were one.

Reads are `preadv` calls into one array. They are announced to the kernel 64 documents ahead, so
that a disk serves them in parallel. When nothing is cached, this gives 62 to 70M tokens/s, and
memory-mapped files give 12 to 15M (bench/LOG.md). Also, a failing disk raises an error here, while
a mapped file would kill the process.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from weakref import finalize

import numpy as np

from storage.system_modules import RESOURCE as resource

_ANNOUNCED = 64  # reads that the kernel may do in parallel
_HAS_FADVISE = hasattr(os, "posix_fadvise")  # not on macOS


class TokenFiles:
    """Positions [0, sum(tokens)); file i holds `tokens[i]` of them, behind its header.

    All tokens have one type. Safe to use from several threads.
    """

    def __init__(self, paths: Sequence[Path], tokens: Sequence[int], dtype: np.dtype) -> None:
        self.dtype = dtype
        self._paths = list(paths)
        self._starts = [0, *accumulate(tokens)]
        _allow_open_files(len(self._paths))
        self._files: list[int] = []
        finalize(self, _close, self._files)
        self._headers: list[int] = []
        for path, count in zip(paths, tokens, strict=True):
            self._files.append(os.open(path, os.O_RDONLY))
            self._headers.append(os.fstat(self._files[-1]).st_size - dtype.itemsize * count)
            if _HAS_FADVISE:  # documents are read in random order: no read-ahead
                os.posix_fadvise(self._files[-1], 0, 0, os.POSIX_FADV_RANDOM)
        # int64, so that searchsorted and additions copy nothing.
        self._starts_array = np.array(self._starts, np.int64)
        headers = np.array([*self._headers, 0], np.int64)
        self._headers_array = headers - dtype.itemsize * self._starts_array

    @property
    def descriptors(self) -> dict[Path, int]:
        """The open files, by their paths."""
        return dict(zip(self._paths, self._files, strict=True))

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), across files."""
        found = np.empty(count, self.dtype)
        filled = 0
        while filled < count:
            file = bisect_right(self._starts, start + filled) - 1
            size = min(count - filled, self._starts[file + 1] - start - filled)
            inside = start + filled - self._starts[file]
            offset = self._headers[file] + self.dtype.itemsize * inside
            self._fill(found[filled : filled + size].data.cast("B"), file, offset)
            filled += size
        return found

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The ranges [start, start + count) concatenated; none may cross a file."""
        found = np.empty(int(counts.sum()), self.dtype)
        view = found.data.cast("B")
        numbers = self._starts_array.searchsorted(starts, side="right") - 1
        offsets = self._headers_array[numbers] + self.dtype.itemsize * starts
        ends = self.dtype.itemsize * counts.cumsum()
        ranges = list(zip(numbers.tolist(), offsets.tolist(), ends.tolist(), strict=True))
        filled = 0
        for first in range(0, len(ranges), _ANNOUNCED):
            some = ranges[first : first + _ANNOUNCED]
            self._announce(some, filled)
            for file, offset, end in some:
                self._fill(view[filled:end], file, offset)
                filled = end
        return found

    def _announce(self, ranges: list[tuple[int, int, int]], filled: int) -> None:
        """Ask the kernel to fetch all ranges: (file, offset in it, end in the result)."""
        if _HAS_FADVISE:
            for file, offset, end in ranges:
                os.posix_fadvise(self._files[file], offset, end - filled, os.POSIX_FADV_WILLNEED)
                filled = end

    def _fill(self, view: memoryview, file: int, offset: int) -> None:
        """Fill `view` from a file. Raises: OSError if it cannot be read or has become shorter."""
        while len(view):
            got = os.preadv(self._files[file], [view], offset)
            if got == 0:
                raise OSError(f"{self._paths[file]} ends before its last token; copy it again")
            view, offset = view[got:], offset + got


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files, usually 1024: every open shard holds a file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(max(wanted, soft), hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
