"""Where every document of an epoch lies in the stream, and the small file that remembers it.

Only the position of every BLOCK-th document is kept: 80 KB for 10 million documents. The file is a
convenience: one that is missing, damaged or of other data is built anew, one that cannot be
written is done without.
"""

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.dataset.shards import TokenShards
from data_prep.order.permutation import FeistelPermutation
from storage.atomic import new_file

log = logging.getLogger(__name__)

BLOCK = 1024  # documents between two stored positions of an epoch
DOCUMENTS_AT_ONCE = BLOCK * 128  # arrays of this many words stay in a core's cache
INDEX_FOLDER = ".index"
INDEX_VERSION = 1
WORTH_KEEPING = 100_000  # documents; an index of fewer is built in milliseconds


@dataclass(frozen=True)
class Block:
    """BLOCK neighbouring documents of an epoch: which, and where in the epoch each lies."""

    number: int
    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


class EpochIndex:
    """Finds any position of one epoch, and any document in it."""

    def __init__(
        self, lengths: np.ndarray, seed: int, epoch: int, starts: np.ndarray | None = None
    ) -> None:
        """`starts` are the positions of every BLOCK-th document, if they are known already."""
        self._permutation = FeistelPermutation(len(lengths), seed, epoch)
        self._lengths = lengths
        self.starts = self._build() if starts is None else starts
        self._recent: Block | None = None

    def _build(self) -> np.ndarray:
        count = len(self._lengths)
        sums = []
        for first in range(0, count, DOCUMENTS_AT_ONCE):
            lengths = self._lengths[self.documents(first, DOCUMENTS_AT_ONCE)]
            sums.append(np.add.reduceat(lengths, np.arange(0, len(lengths), BLOCK), dtype=np.int64))
        # int64 throughout: searchsorted with a Python int on a uint64 array would copy the array.
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sums))])

    def documents(self, first: int, count: int) -> np.ndarray:
        """Ids of the documents [first, first + count) of the epoch, fewer at its end."""
        last = min(first + count, len(self._lengths))
        return self._permutation(np.arange(first, last, dtype=np.uint64))

    def block_at(self, position: int) -> Block:
        """The block that holds a position of the epoch."""
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        recent = self._recent
        if recent is None or recent.number != number:
            ids = self.documents(number * BLOCK, BLOCK)
            lengths = self._lengths[ids]
            ends = self.starts[number] + np.cumsum(lengths, dtype=np.int64)
            recent = self._recent = Block(number, ids, ends - lengths, ends)
        return recent

    def position_of(self, document: int) -> int:
        """Position in the epoch of the document's first token."""
        place = int(self._permutation.inverse(np.array([document], np.uint64))[0])
        block = self.block_at(int(self.starts[place // BLOCK]))
        return int(block.begins[place % BLOCK])


def should_cache(shards: TokenShards) -> bool:
    """Whether building an index takes long enough to keep it and to build it ahead."""
    return shards.documents >= WORTH_KEEPING


def open_index(shards: TokenShards, seed: int, epoch: int) -> EpochIndex:
    """The index of an epoch: from its file, or built and then put there for the next who asks."""
    if not should_cache(shards):
        return EpochIndex(shards.lengths, seed, epoch)
    path = index_path(shards, seed, epoch)
    starts = _load(path, shards, seed, epoch)
    index = EpochIndex(shards.lengths, seed, epoch, starts)
    if starts is None:
        with suppress(OSError):  # a folder that is read-only or full
            _save(path, _header(shards, seed, epoch), index.starts)
    return index


def index_path(shards: TokenShards, seed: int, epoch: int) -> Path:
    """Where the index of an epoch is kept: in the data set, under the name of what decides it."""
    name = f"index_{seed}_{epoch}_{shards.lengths_sha256[:12]}.words"
    return shards.folder / INDEX_FOLDER / name


def _header(shards: TokenShards, seed: int, epoch: int) -> np.ndarray:
    lengths = int(shards.lengths_sha256[:16], 16)
    words = [INDEX_VERSION, seed, epoch, shards.documents, shards.tokens, lengths, BLOCK]
    return np.array(words, np.uint64)


def _save(path: Path, header: np.ndarray, starts: np.ndarray) -> None:
    """Header, positions and a digest of both as 64-bit words; several ranks may write at once."""
    words = np.concatenate([header, starts.astype(np.uint64)])
    with new_file(path) as aside:
        aside.write_bytes(np.append(words, _digest(words)).astype("<u8").tobytes())


def _load(path: Path, shards: TokenShards, seed: int, epoch: int) -> np.ndarray | None:
    """The positions in the file; None if there is none, or it is damaged or of something else."""
    header = _header(shards, seed, epoch)
    try:
        found = np.fromfile(path, "<u8").astype(np.uint64)
    except FileNotFoundError:
        return None
    except OSError:
        found = np.empty(0, np.uint64)
    whole = len(found) == len(header) + -(-shards.documents // BLOCK) + 2
    if whole and found[-1] == _digest(found[:-1]) and (found[: len(header)] == header).all():
        return found[len(header) : -1].astype(np.int64)
    log.warning("%s is damaged or of other data; it is built anew", path)
    return None


def _digest(words: np.ndarray) -> np.uint64:
    digest = hashlib.blake2b(words.astype("<u8").tobytes(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))
