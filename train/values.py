"""What one step's reduction carries: a float64 vector, summed over ranks.

Digests travel as four 16-bit parts, whose sums float64 holds exactly.
"""

from collections.abc import Iterable

import torch

LOSS, STOP, DIGEST = 0, 1, slice(2, 6)  # summed over ranks
NORM, SKIPPED = 6, 7  # the same on every rank, filled in after the sum
VALUES = 8
_SHIFTS = (0, 16, 32, 48)


def split_digest(digest: int) -> torch.Tensor:
    """A 64-bit digest as four 16-bit parts, lowest first. Shape: (4,) float64."""
    return torch.tensor([(digest >> shift) & 0xFFFF for shift in _SHIFTS]).double()


def join_digest(parts: Iterable[torch.Tensor]) -> int:
    """The digest modulo 2**64 from parts that were summed over ranks."""
    return sum(int(part) << shift for part, shift in zip(parts, _SHIFTS, strict=True)) % 2**64
