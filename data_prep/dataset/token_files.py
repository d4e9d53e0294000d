"""The tokens of several files end to end, read by position.

Reads are `pread`s into the caller's array, announced to the kernel a few dozen documents ahead, so
that a cold disk serves them side by side. Against mapped files this is several times faster from a
cold disk, and a disk that fails is an error instead of a dead process.
"""

import os
import resource
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from weakref import finalize

import numpy as np

TOKEN = np.dtype("<u2")
ANNOUNCED = 64  # documents that the disk may fetch side by side
ADVISES = hasattr(os, "posix_fadvise")  # not on macOS


class TokenFiles:
    """Positions [0, sum(tokens)) in the last `tokens[i]` items of each file; safe for threads."""

    def __init__(self, paths: Sequence[Path], tokens: Sequence[int]) -> None:
        self._paths = list(paths)
        self._starts = [0, *accumulate(tokens)]
        _allow_open_files(len(self._paths))
        self._files: list[int] = []
        finalize(self, _close, self._files)
        self._headers: list[int] = []
        for path, count in zip(paths, tokens, strict=True):
            self._files.append(os.open(path, os.O_RDONLY))
            self._headers.append(os.fstat(self._files[-1]).st_size - TOKEN.itemsize * count)
            if ADVISES:  # documents come in random order: what lies behind one is not wanted
                os.posix_fadvise(self._files[-1], 0, 0, os.POSIX_FADV_RANDOM)
        # int64, so that searchsorted and additions copy nothing.
        self._starts_array = np.array(self._starts, np.int64)
        headers = np.array([*self._headers, 0], np.int64)
        self._headers_array = headers - TOKEN.itemsize * self._starts_array

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count), uint16, across files."""
        found = np.empty(count, TOKEN)
        filled = 0
        while filled < count:
            file = bisect_right(self._starts, start + filled) - 1
            size = min(count - filled, self._starts[file + 1] - start - filled)
            offset = self._headers[file] + TOKEN.itemsize * (start + filled - self._starts[file])
            self._fill(found[filled : filled + size].data.cast("B"), file, offset)
            filled += size
        return found

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The pieces [start, start + count) one after the other, uint16; none crosses a file."""
        found = np.empty(int(counts.sum()), TOKEN)
        view = found.data.cast("B")
        numbers = np.searchsorted(self._starts_array, starts, side="right") - 1
        offsets = self._headers_array[numbers] + TOKEN.itemsize * starts
        ends = TOKEN.itemsize * np.cumsum(counts)
        places = list(zip(numbers.tolist(), offsets.tolist(), ends.tolist(), strict=True))
        filled = 0
        for first in range(0, len(places), ANNOUNCED):
            some = places[first : first + ANNOUNCED]
            self._announce(some, filled)
            for file, offset, end in some:
                self._fill(view[filled:end], file, offset)
                filled = end
        return found

    def _announce(self, pieces: list[tuple[int, int, int]], filled: int) -> None:
        """Let the kernel fetch the pieces (file, offset, end in what is wanted) all at once."""
        if ADVISES:
            for file, offset, end in pieces:
                os.posix_fadvise(self._files[file], offset, end - filled, os.POSIX_FADV_WILLNEED)
                filled = end

    def _fill(self, view: memoryview, file: int, offset: int) -> None:
        """Raises: OSError naming the file if it cannot be read or has become shorter."""
        while len(view):
            got = os.preadv(self._files[file], [view], offset)
            if got == 0:
                raise OSError(f"{self._paths[file]} ends before its last token; copy it again")
            view, offset = view[got:], offset + got


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _allow_open_files(count: int) -> None:
    """Every open shard holds a file descriptor, and the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(max(wanted, soft), hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
