"""A keyed permutation of [0, N): integers only, nothing stored, invertible, the same everywhere.

Its values never change: every run's order of documents hangs on them.
"""

import numpy as np

ROUNDS = 6

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
