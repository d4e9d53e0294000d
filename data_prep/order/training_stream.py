"""The order of training in one source: its tokens at any place, from data set and seed.

Each epoch permutes the documents with a keyed Feistel network. The epochs follow one another as one
endless stream of tokens. It makes no difference which rank, micro-batch or thread reads it.
ARCHITECTURE.md, "The order of training", has the complete definition.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread

import numpy as np

from data_prep.dataset.shards import TokenShards
from data_prep.order.epoch_index import DocumentBlock, EpochIndex, open_index, should_cache

# The index of this epoch, of the next one, and of the last one for a thread that still reads it.
_MAX_INDICES = 3
_FEW_DOCUMENTS = 32  # of a block: a read of fewer finds the places of no others


@dataclass(frozen=True)
class StreamPieces:
    """A range of the stream inside one epoch, cut at the boundaries of documents."""

    epoch: int
    documents: np.ndarray
    """Ids, in the order of the stream."""
    offsets: np.ndarray
    """First token of each piece, counted from its document's first."""
    counts: np.ndarray
    """Tokens of each piece; all but the first and the last are whole documents."""


class TrainingStream:
    """The endless stream of training tokens; safe to read from several threads."""

    def __init__(self, shards: TokenShards, seed: int, stored_indexes: bool = True) -> None:
        """`stored_indexes=False` builds every epoch's index, for a proof of the order."""
        self.shards = shards
        self.seed = seed
        self.stored_indexes = stored_indexes
        self._indices: dict[int, Future[EpochIndex]] = {}
        self._lock = Lock()
        self._recent: tuple[DocumentBlock, np.ndarray] | None = None

    @property
    def token_dtype(self) -> np.dtype:
        """The type of the tokens that are read: uint16 or uint32."""
        return self.shards.token_dtype

    def index(self, epoch: int) -> EpochIndex:
        """The index of an epoch; the latest _MAX_INDICES are kept.

        Building one takes less than a second for 10 million documents (bench/order.py).
        """
        # The lock covers only the dictionary. The building thread works outside it, so a reader of
        # this epoch never waits for the index of the next one.
        with self._lock:
            found = self._indices.get(epoch)
            if found is not None:
                future = found
            else:
                future = self._indices[epoch] = Future()
                while len(self._indices) > _MAX_INDICES:
                    del self._indices[next(iter(self._indices))]
        if found is None:
            self._open(epoch, future)
        return future.result()

    def _open(self, epoch: int, future: "Future[EpochIndex]") -> None:
        try:
            future.set_result(self._index_of(epoch))
        except BaseException as error:
            with self._lock:
                self._indices.pop(epoch, None)
            future.set_exception(error)
            raise

    def _index_of(self, epoch: int) -> EpochIndex:
        if self.stored_indexes:
            return open_index(self.shards, self.seed, epoch)
        return EpochIndex(self.shards.lengths, self.seed, epoch)

    def _build_ahead(self, epoch: int) -> None:
        """Build the index of an epoch in a thread, before it is needed."""
        if self.stored_indexes and should_cache(self.shards) and epoch not in self._indices:
            Thread(target=self._build_quietly, args=(epoch,), name="index", daemon=True).start()

    def _build_quietly(self, epoch: int) -> None:
        with suppress(Exception):  # the reader of that epoch tries again and raises the error
            self.index(epoch)

    def _blocks(self, start: int, count: int) -> Iterator[tuple[int, DocumentBlock, int, int]]:
        """The blocks that hold these tokens: epoch, block, and from where to where in the epoch."""
        if start < 0 or count < 0:
            raise ValueError(f"start={start}, count={count}: both must be 0 or more")
        while count:
            epoch, position = divmod(start, self.shards.tokens)
            block = self.index(epoch).block_at(position)
            if 2 * position > self.shards.tokens:
                self._build_ahead(epoch + 1)
            stop = min(position + count, int(block.ends[-1]))
            yield epoch, block, position, stop
            start, count = start + stop - position, count - (stop - position)

    def pieces(self, start: int, count: int) -> Iterator[StreamPieces]:
        """The documents that hold tokens [start, start + count) of the stream, block by block."""
        for epoch, block, position, stop in self._blocks(start, count):
            held = block.holding(position, stop)
            begins, ends = block.begins[held], block.ends[held]
            offsets = np.maximum(position - begins, 0)
            counts = np.minimum(ends, stop) - begins - offsets
            yield StreamPieces(epoch, block.ids[held], offsets, counts)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) of the stream."""
        found = []
        for _, block, position, stop in self._blocks(start, count):
            held = block.holding(position, stop)
            first = np.maximum(block.begins[held], position)
            counts = np.minimum(block.ends[held], stop) - first
            found.append(self.shards.gather(self._shifts(block, held) + first, counts))
        if len(found) == 1:
            return found[0]
        return np.concatenate([np.empty(0, self.token_dtype), *found])

    def _shifts(self, block: DocumentBlock, held: slice) -> np.ndarray:
        """What to add to a position in the epoch for that in the shards, for these documents.

        Long reads follow one another, so they find that of the whole block, and keep it.
        """
        recent = self._recent  # one reference to what never changes, as in EpochIndex.block_at
        if recent is not None and recent[0] is block:
            return recent[1][held]
        if held.stop - held.start < _FEW_DOCUMENTS:
            return self.shards.document_starts(block.ids[held]) - block.begins[held]
        shifts = self.shards.document_starts(block.ids) - block.begins
        self._recent = (block, shifts)
        return shifts[held]
