"""A keyed permutation of [0, N), computed on demand, with its inverse.

It uses integers only and stores nothing, so it gives the same values on every machine. The values
must never change: the document order of every run depends on them.
"""

import numpy as np

_ROUNDS = 6

WORD_MASK = (1 << 64) - 1
# The increment and the two multipliers of splitmix64. The key schedule uses its complete finalizer
# (`_mix`, with the shifts 30, 27 and 31). The round function of the Feistel network is our own: it
# has the same two multipliers, but the shifts 32 and 29.
# Source: https://prng.di.unimi.it/splitmix64.c
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _mix(word: int) -> int:
    """The finalizer of splitmix64: a bijection of 64-bit words that mixes all bits."""
    word = ((word ^ (word >> 30)) * _MIX_1) & WORD_MASK
    word = ((word ^ (word >> 27)) * _MIX_2) & WORD_MASK
    return word ^ (word >> 31)


def round_keys(seed: int, epoch: int) -> list[int]:
    """One 64-bit key for each round of the network."""
    state = 0
    # Seed and epoch are mixed in one after the other. If they were added, (seed 1, epoch 0) and
    # (seed 0, epoch 1) would give the same order.
    for word in (seed, epoch):
        if not 0 <= word <= WORD_MASK:
            raise ValueError(f"seed={seed}, epoch={epoch}: both must be from 0 to 2**64 - 1")
        state = _mix(((state ^ word) + _GOLDEN_GAMMA) & WORD_MASK)
    return [_mix((state + (index + 1) * _GOLDEN_GAMMA) & WORD_MASK) for index in range(_ROUNDS)]


class FeistelPermutation:
    """A permutation of [0, count) under the keys of a seed and an epoch.

    A balanced Feistel network permutes [0, 4**h), with the smallest 4**h >= count. A value outside
    [0, count) is sent through the network again until it is inside ("cycle walking"). Since
    4**h < 4 * count for count > 1, this takes fewer than four passes on average.
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
        """The image of each index, uint64."""
        return self._cycle_walk(indices, forward=True)

    def inverse(self, images: np.ndarray) -> np.ndarray:
        """The index of each image, uint64."""
        return self._cycle_walk(images, forward=False)

    def _cycle_walk(self, values: np.ndarray, forward: bool) -> np.ndarray:
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
        # Products of uint64 wrap modulo 2**64, as intended. A Feistel network is invertible
        # whatever its round function does.
        mixed = (values ^ key) * np.uint64(_MIX_1)
        mixed ^= mixed >> np.uint64(32)
        mixed *= np.uint64(_MIX_2)
        mixed ^= mixed >> np.uint64(29)
        return mixed & self._mask
