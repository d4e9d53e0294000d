"""How many documents are copies of others: hashes stored unit by unit, counted at the end.

12 bytes a document on disk; in memory at most 16 million hashes at a time.
"""

import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.dataset.manifest import Duplicates
from data_prep.preparation.split import text_hash
from storage.atomic import save_array

HASHES_AT_ONCE = 1 << 24
HASHES = "hashes.npy"
CHECKSUMS = "checksums.npy"
# Any odd number: spreads a 32-bit checksum over 64 bits.
SPREAD = np.uint64(0x9E3779B97F4A7C15)


class DocumentHashes:
    """The hash of every document's normalised text, with a checksum of the text as it is."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._checksums = array("I")

    def add(self, text: bytes) -> int:
        """Remember a document (an empty one is none) and return its `text_hash`."""
        hashed = text_hash(text)
        if text:
            self._hashes.append(hashed)
            self._checksums.append(zlib.crc32(text))
        return hashed

    def save(self, folder: Path) -> None:
        """Write two files for `count_duplicates`."""
        save_array(folder / HASHES, np.array(self._hashes, np.uint64))
        save_array(folder / CHECKSUMS, np.array(self._checksums, np.uint32))


def count_duplicates(folders: Iterable[Path]) -> Duplicates:
    """Documents that are copies of an earlier one, over all units.

    Exact copies share the hash of the normalised text and the checksum of the text itself.
    """
    folders = list(folders)
    documents = sum(len(np.load(folder / HASHES, mmap_mode="r")) for folder in folders)
    passes = 1 + documents // HASHES_AT_ONCE
    exact = normalised = 0
    for number in range(passes):
        hashes, keys = _share(folders, number, passes)
        normalised += len(hashes) - len(np.unique(hashes))
        exact += len(keys) - len(np.unique(keys))
    return Duplicates(exact, normalised)


def _share(folders: list[Path], number: int, passes: int) -> tuple[np.ndarray, np.ndarray]:
    """All hashes that leave the remainder `number` when divided by `passes`."""
    hashes, keys = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for folder in folders:
        found = np.load(folder / HASHES)
        chosen = found % np.uint64(passes) == number
        checksums = np.load(folder / CHECKSUMS)[chosen].astype(np.uint64)
        hashes.append(found[chosen])
        keys.append(found[chosen] ^ (checksums * SPREAD))
    return np.concatenate(hashes), np.concatenate(keys)
