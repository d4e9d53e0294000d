"""The order of training: a pure function of the data set, the seed and a position.

Every epoch permutes the documents by a keyed Feistel network (integers only, nothing stored), the
epochs follow one another as one endless stream of tokens, and window w is its tokens [wT, wT + T].
Who reads a window (rank, micro-batch, thread) changes nothing.
"""

import hashlib
from threading import Lock

import numpy as np

from data_prep.shards import TokenShards

ROUNDS = 6
BLOCK = 1024  # documents between two stored positions of an epoch
DOCUMENTS_AT_ONCE = BLOCK * 1024

WORD = (1 << 64) - 1
# Multipliers and shifts of splitmix64. Source: https://prng.di.unimi.it/splitmix64.c
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def _mix(word: int) -> int:
    """splitmix64's finalizer: a bijection of 64-bit words that spreads every bit over all."""
    word = ((word ^ (word >> 30)) * MIX_1) & WORD
    word = ((word ^ (word >> 27)) * MIX_2) & WORD
    return word ^ (word >> 31)


def round_keys(seed: int, epoch: int) -> list[int]:
    """One 64-bit key a round; seed and epoch enter one after the other, never as a sum."""
    state = 0
    for word in (seed, epoch):
        if not 0 <= word <= WORD:
            raise ValueError(f"seed={seed}, epoch={epoch}: both must be from 0 to 2**64 - 1")
        state = _mix(((state ^ word) + GOLDEN) & WORD)
    return [_mix((state + (turn + 1) * GOLDEN) & WORD) for turn in range(ROUNDS)]


class FeistelPermutation:
    """A keyed permutation of [0, count), computed where it is asked for.

    A balanced Feistel network permutes the smallest 4**h >= count; a value that lands outside is
    sent through again until it is inside (cycle walking, under four turns on average).
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if count < 1:
            raise ValueError(f"count={count}: a permutation needs at least one element")
        half = max(1, ((count - 1).bit_length() + 1) // 2)
        self.count = np.uint64(count)
        self._half = np.uint64(half)
        self._mask = np.uint64((1 << half) - 1)
        self._keys = [np.uint64(key) for key in round_keys(seed, epoch)]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Where each index goes, uint64."""
        return self._walk(indices, forward=True)

    def inverse(self, images: np.ndarray) -> np.ndarray:
        """Which index goes to each image, uint64."""
        return self._walk(images, forward=False)

    def _walk(self, values: np.ndarray, forward: bool) -> np.ndarray:
        found = self._network(values.astype(np.uint64), forward)
        outside = np.flatnonzero(found >= self.count)
        while len(outside):
            again = self._network(found[outside], forward)
            found[outside] = again
            outside = outside[again >= self.count]
        return found

    def _network(self, values: np.ndarray, forward: bool) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        if forward:
            for key in self._keys:
                left, right = right, left ^ self._round(right, key)
        else:
            for key in reversed(self._keys):
                left, right = right ^ self._round(left, key), left
        return (left << self._half) | right

    def _round(self, values: np.ndarray, key: np.uint64) -> np.ndarray:
        mixed = (values ^ key) * np.uint64(MIX_1)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(MIX_2)
        mixed ^= mixed >> np.uint64(29)
        return mixed & self._mask


class EpochIndex:
    """Finds any position of one epoch: the position of every BLOCK-th document is kept."""

    def __init__(self, shards: TokenShards, seed: int, epoch: int) -> None:
        self._permutation = FeistelPermutation(shards.documents, seed, epoch)
        self._lengths = shards.lengths
        sums = []
        for first in range(0, shards.documents, DOCUMENTS_AT_ONCE):
            lengths = self._lengths[self.documents(first, DOCUMENTS_AT_ONCE)]
            cuts = np.arange(0, len(lengths), BLOCK)
            sums.append(np.add.reduceat(lengths, cuts, dtype=np.int64))
        # int64 throughout: searchsorted with a Python int on a uint64 array would copy the array.
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sums))])
        self._recent: tuple[int, np.ndarray, np.ndarray] | None = None

    def documents(self, first: int, count: int) -> np.ndarray:
        """Ids of the documents [first, first + count) of the epoch, fewer at its end."""
        last = min(first + count, int(self._permutation.count))
        return self._permutation(np.arange(first, last, dtype=np.uint64))

    def block_at(self, position: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The block that holds a position: its number, its document ids, where each ends."""
        block = int(np.searchsorted(self._starts, position, side="right")) - 1
        recent = self._recent
        if recent is None or recent[0] != block:
            ids = self.documents(block * BLOCK, BLOCK)
            ends = self._starts[block] + np.cumsum(self._lengths[ids], dtype=np.int64)
            recent = self._recent = (block, ids, ends)
        return recent


class TrainingStream:
    """The endless stream of training tokens; safe to read from several threads."""

    def __init__(self, shards: TokenShards, seed: int) -> None:
        self.shards = shards
        self.seed = seed
        self._indices: dict[int, EpochIndex] = {}
        self._lock = Lock()

    def index(self, epoch: int) -> EpochIndex:
        """The index of an epoch; the latest two are kept (1.5 s to make for 10M documents)."""
        with self._lock:
            if epoch not in self._indices:
                for old in sorted(self._indices)[:-1]:
                    del self._indices[old]
                self._indices[epoch] = EpochIndex(self.shards, self.seed, epoch)
            return self._indices[epoch]

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) of the stream, uint16."""
        if start < 0 or count < 0:
            raise ValueError(f"start={start}, count={count}: both must be 0 or more")
        found = np.empty(count, np.uint16)
        filled = 0
        while filled < count:
            epoch, position = divmod(start + filled, self.shards.tokens)
            _, ids, ends = self.index(epoch).block_at(position)
            place = int(np.searchsorted(ends, position, side="right"))
            while place < len(ids) and filled < count:
                # From the position to the document's end, or to the end of what is wanted.
                left = int(ends[place]) - position
                take = min(left, count - filled)
                document = int(ids[place])
                end = self.shards.document_start(document) + int(self.shards.lengths[document])
                found[filled : filled + take] = self.shards.read(end - left, take)
                filled, position, place = filled + take, position + take, place + 1
        return found


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
        digest = hashlib.blake2b(index.to_bytes(8, "little") + window.tobytes(), digest_size=8)
        total += int.from_bytes(digest.digest(), "little")
    return total & WORD
