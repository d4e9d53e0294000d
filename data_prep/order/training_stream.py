"""The order of training: a pure function of the data set, the seed and a position.

Every epoch permutes the documents by a keyed Feistel network (integers only, nothing stored), the
epochs follow one another as one endless stream of tokens, and window w is its tokens [wT, wT + T].
Who reads a window (rank, micro-batch, thread) changes nothing.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread

import numpy as np

from data_prep.dataset.shards import TokenShards
from data_prep.order.epoch_index import EpochIndex, open_index, should_cache
from data_prep.order.permutation import WORD

INDICES_KEPT = 3  # this epoch's, the next one's, and the last one's for a reader that lags


@dataclass(frozen=True)
class Pieces:
    """A run of the stream inside one epoch, document by document."""

    epoch: int
    documents: np.ndarray
    """Ids, in the order of the stream."""
    offsets: np.ndarray
    """First token of each piece, counted from its document's first."""
    counts: np.ndarray
    """Tokens of each piece; all but the first and the last are whole documents."""


class TrainingStream:
    """The endless stream of training tokens; safe to read from several threads."""

    def __init__(self, shards: TokenShards, seed: int) -> None:
        self.shards = shards
        self.seed = seed
        self._indices: dict[int, Future[EpochIndex]] = {}
        self._lock = Lock()

    def index(self, epoch: int) -> EpochIndex:
        """The index of an epoch; the newest few are kept (a second to make for 10M documents)."""
        with self._lock:
            found = self._indices.get(epoch)
            if found is not None:
                waiting = found
            else:
                waiting = self._indices[epoch] = Future()
                while len(self._indices) > INDICES_KEPT:
                    del self._indices[next(iter(self._indices))]
        if found is None:
            self._open(epoch, waiting)
        return waiting.result()

    def _open(self, epoch: int, promise: "Future[EpochIndex]") -> None:
        try:
            promise.set_result(open_index(self.shards, self.seed, epoch))
        except BaseException as error:
            with self._lock:
                self._indices.pop(epoch, None)
            promise.set_exception(error)
            raise

    def _prepare(self, epoch: int) -> None:
        """Have the index of an epoch ready before anyone asks for it, without waiting."""
        if should_cache(self.shards) and epoch not in self._indices:
            Thread(target=self._prepared, args=(epoch,), name="index", daemon=True).start()

    def _prepared(self, epoch: int) -> None:
        with suppress(Exception):  # whoever reads the epoch tries again, and then it is an error
            self.index(epoch)

    def pieces(self, start: int, count: int) -> Iterator[Pieces]:
        """The documents that hold tokens [start, start + count) of the stream, run by run."""
        if start < 0 or count < 0:
            raise ValueError(f"start={start}, count={count}: both must be 0 or more")
        while count:
            epoch, position = divmod(start, self.shards.tokens)
            block = self.index(epoch).block_at(position)
            if 2 * position > self.shards.tokens:
                self._prepare(epoch + 1)
            stop = min(position + count, int(block.ends[-1]))
            first = int(np.searchsorted(block.ends, position, side="right"))
            last = int(np.searchsorted(block.ends, stop, side="left")) + 1
            begins, ends = block.begins[first:last], block.ends[first:last]
            offsets = np.maximum(position - begins, 0)
            yield Pieces(
                epoch, block.ids[first:last], offsets, np.minimum(ends, stop) - begins - offsets
            )
            start, count = start + stop - position, count - (stop - position)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) of the stream, uint16."""
        found = [
            self.shards.gather(
                self.shards.document_starts(piece.documents) + piece.offsets, piece.counts
            )
            for piece in self.pieces(start, count)
        ]
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.uint16), *found])


def read_windows(stream: TrainingStream, first: int, count: int, length: int) -> np.ndarray:
    """Windows [first, first + count), each `length` tokens and the one after, shared with the next.

    Shapes: (count, length + 1), uint16.
    """
    if count == 0:
        return np.empty((0, length + 1), np.uint16)
    tokens = stream.read(first * length, count * length + 1)
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length].copy()


def windows_digest(first: int, windows: np.ndarray) -> int:
    """Digest of windows [first, first + len(windows)) that can be added up, mod 2**64, over ranks.

    The sum of BLAKE2b-64 over each window's index and tokens: which rank read what is no matter.
    """
    total = 0
    for index, window in enumerate(np.ascontiguousarray(windows, dtype="<u2"), start=first):
        digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8)
        digest.update(window)
        total += int.from_bytes(digest.digest(), "little")
    return total & WORD
