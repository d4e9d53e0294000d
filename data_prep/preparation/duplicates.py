"""Counts documents that are copies of others, from hashes that each unit has stored.

The hashes take 12 bytes per document on disk. At most about 16 million are in memory at a time.
"""

import zlib
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.dataset.manifest import Duplicates
from data_prep.preparation.split import text_hash
from storage.atomic import load_array, save_array

HASHES_PER_PASS = 1 << 24
_HASHES = "hashes.npy"
_CHECKSUMS = "checksums.npy"
HASH_FILES = (_HASHES, _CHECKSUMS)
# Any large odd number would do: it distributes a 32-bit checksum over 64 bits.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class DocumentHashes:
    """For every document, the hash of its normalised text and a checksum of its exact text."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._checksums = array("I")

    def add(self, text: bytes) -> int:
        """Add a document, unless it is empty, and return its `text_hash`."""
        hashed = text_hash(text)
        if text:
            self._hashes.append(hashed)
            self._checksums.append(zlib.crc32(text))
        return hashed

    def save(self, folder: Path) -> None:
        """Write the two files that `count_duplicates` reads."""
        save_array(folder / _HASHES, np.array(self._hashes, np.uint64))
        save_array(folder / _CHECKSUMS, np.array(self._checksums, np.uint32))


def read_text_hashes(folder: Path) -> np.ndarray:
    """The `text_hash` of every document that is not empty, in source order, uint64."""
    return _load(folder, _HASHES)


def count_duplicates(folders: Iterable[Path]) -> Duplicates:
    """The number of documents, over all units, that are copies of an earlier one.

    Exact copies have the same hash of the normalised text and the same checksum of the exact text.
    """
    folders = list(folders)
    documents = sum(len(_load(folder, _HASHES)) for folder in folders)
    # Each pass counts the hashes of one remainder: equal hashes are always in the same pass.
    passes = 1 + documents // HASHES_PER_PASS
    exact = normalised = 0
    for number in range(passes):
        hashes, keys = _remainder_class(folders, number, passes)
        normalised += len(hashes) - len(np.unique(hashes))
        exact += len(keys) - len(np.unique(keys))
    return Duplicates(exact, normalised)


def _remainder_class(
    folders: list[Path], number: int, passes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes with the remainder `number` modulo `passes`, and keys that identify exact texts."""
    hashes, keys = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for folder in folders:
        found = _load(folder, _HASHES)
        chosen = found % np.uint64(passes) == number
        checksums = _load(folder, _CHECKSUMS)[chosen].astype(np.uint64)
        hashes.append(found[chosen])
        keys.append(found[chosen] ^ (checksums * _MULTIPLIER))
    return np.concatenate(hashes), np.concatenate(keys)


def _load(folder: Path, name: str) -> np.ndarray:
    return load_array(folder / name, f"delete {folder} and start again")
