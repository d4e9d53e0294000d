"""Windows of a stream of training tokens, of one source or of a mixture, and their digest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_prep.order.permutation import WORD_MASK
from data_prep.order.training_stream import TrainingStream
from data_prep.order.weights import WeightStart


@dataclass(frozen=True)
class SourceWindows:
    """What consecutive windows of a stream hold of one source: windows that follow one another."""

    source: int
    """Number of the source."""
    stream: TrainingStream
    first: int
    """The first of them, counted in the source's own stream."""
    count: int
    rows: np.ndarray | None = None
    """Which of the windows they are, from 0; None: all of them. Shapes: (count,)."""


class WindowStream(Protocol):
    """Windows without end; safe to read from several threads."""

    @property
    def streams(self) -> Sequence[TrainingStream]:
        """The stream of each source; all have tokens of one type."""
        ...

    @property
    def weight_starts(self) -> Sequence[WeightStart]:
        """Where the weights change; never of a single source."""
        ...

    def by_source(self, first: int, count: int) -> Sequence[SourceWindows]:
        """The windows [first, first + count), source by source; none without windows."""
        ...

    def counts(self, window: int) -> np.ndarray:
        """How many windows before this one are from each source. Shapes: (sources,), int64."""
        ...

    def window(self, source: int, own: int) -> int | None:
        """The window that is number `own` of a source; None if it never comes."""
        ...


@dataclass(frozen=True)
class OneSource:
    """The windows of a single source: number w is tokens [wT, wT + T] of its stream."""

    stream: TrainingStream

    @property
    def streams(self) -> Sequence[TrainingStream]:
        """See WindowStream."""
        return (self.stream,)

    @property
    def weight_starts(self) -> Sequence[WeightStart]:
        """See WindowStream."""
        return ()

    def by_source(self, first: int, count: int) -> Sequence[SourceWindows]:
        """See WindowStream."""
        return (SourceWindows(0, self.stream, first, count),) if count else ()

    def counts(self, window: int) -> np.ndarray:
        """See WindowStream."""
        return np.array([window], np.int64)

    def window(self, source: int, own: int) -> int | None:
        """See WindowStream."""
        return own


def read_windows(stream: WindowStream, first: int, count: int, length: int) -> np.ndarray:
    """Windows [first, first + count), each of `length` tokens and the one after them.

    Neighbouring windows of a source share one token: the last target of one is the first input of
    the next.
    Shapes: (count, length + 1), in the type of the shards.
    """
    found = np.empty((count, length + 1), stream.streams[0].token_dtype)
    read_into(found, stream, first)
    return found


def read_into(found: np.ndarray, stream: WindowStream, first: int) -> None:
    """The same windows, from `first` on, written into an array of their shape and type."""
    length = found.shape[1] - 1
    for part in stream.by_source(first, len(found)):
        tokens = part.stream.read(part.first * length, part.count * length + 1)
        # Neighbours share a token.
        shape, size = (part.count, length + 1), tokens.itemsize
        windows = np.ndarray(shape, tokens.dtype, tokens, strides=(length * size, size))
        found[slice(None) if part.rows is None else part.rows] = windows


def windows_digest(first: int, windows: np.ndarray) -> int:
    """Digest of windows [first, first + len(windows)): a sum modulo 2**64.

    It adds up BLAKE2b-64 of each window's number and tokens, in the 2 or 4 bytes that shards have
    for one. A sum does not depend on the order, so the digests of all ranks add up to the digest of
    the step, whichever rank reads which window.
    """
    total = 0
    stored = np.ascontiguousarray(windows, windows.dtype.newbyteorder("<"))
    for index, window in enumerate(stored, start=first):
        digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8)
        digest.update(window)
        total += int.from_bytes(digest.digest(), "little")
    return total & WORD_MASK
