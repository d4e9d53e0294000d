"""Speed of the training order: index of an epoch, access to a window, reading of a rank.

    python bench/order.py

It needs no data set. It makes up the lengths of documents, by default as many as FineWeb-Edu's
samples have, and reads tokens from a scratch file of random ones. Out: results/order.json and a
table.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from bench.provenance import RESULTS, provenance
from data_prep.dataset.shards import TokenShards
from data_prep.dataset.token_files import TokenFiles
from data_prep.order.epoch_index import EpochIndex, open_index
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows, windows_digest
from storage.atomic import write_json
from storage.script_options import parse_options

_T = 1024
_MICRO_BATCH = 64
_MEAN_TOKENS = 1029.1  # sample-10BT: 9,953,989,344 tokens in 9,672,101 documents
# Of the logarithm of lengths. The mean is then 1.65 times the median, in FineWeb-Edu 1.61 times.
_SIGMA = 1.0


@dataclass(frozen=True)
class Options:
    """Measure how fast the training order is computed and read."""

    documents: tuple[int, ...] = (9_672_101, 97_270_686)
    """Documents of each synthetic data set: sample-10BT's and sample-100BT's."""
    file_tokens: int = 400_000_000
    """Tokens of the scratch file. It must fit the page cache, because reads are random."""
    repeats: int = 3
    """Number of measurements. The result has all of them, the table their median."""
    scratch: Path | None = None
    """Folder for the scratch file; default: the system's temporary folder."""
    out: Path = RESULTS / "order.json"
    """Result file."""


class SyntheticShards(TokenShards):
    """Shards with given document lengths, whose tokens are read from one scratch file."""

    def __init__(self, folder: Path, lengths: np.ndarray, tokens: int) -> None:
        self.folder = folder
        self.lengths_sha256 = sha256(lengths.tobytes()).hexdigest()
        self.documents, self.tokens = len(lengths), int(lengths.sum(dtype=np.int64))
        self.__dict__["lengths"] = lengths
        self.file = folder / "tokens.bin"
        self.token_dtype = np.dtype("<u2")
        self._files = TokenFiles([self.file], [tokens], self.token_dtype)
        self._within = tokens - int(lengths.max())

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Read as the project does, at positions modulo the size of the scratch file."""
        return super().gather(starts % self._within, counts)


class _MappedShards(SyntheticShards):
    """The same shards read through a memory map, for comparison."""

    mapped: np.ndarray | None = None

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Copy slices of a memory map, the usual method."""
        if self.mapped is None:
            self.mapped = np.memmap(self.file, np.uint16, "r").view(np.ndarray)
        found, filled = np.empty(int(counts.sum()), np.uint16), 0
        folded = (starts % self._within).tolist()
        for start, count in zip(folded, counts.tolist(), strict=True):
            found[filled : filled + count] = self.mapped[start : start + count]
            filled += count
        return found


def synthetic_lengths(documents: int) -> np.ndarray:
    """Log-normal document lengths, similar to those of web text."""
    random = np.random.default_rng(0)
    logs = random.standard_normal(documents, dtype=np.float32) * np.float32(_SIGMA)
    lengths = np.exp(logs) * (_MEAN_TOKENS / np.exp(_SIGMA**2 / 2))
    return np.maximum(lengths, 2).astype(np.uint32)


def write_tokens(path: Path, tokens: int) -> None:
    """Write a file of random token ids."""
    random = np.random.default_rng(1)
    with path.open("wb") as file:
        for first in range(0, tokens, 1 << 24):
            ids = random.integers(0, 50257, min(1 << 24, tokens - first), np.uint16)
            file.write(ids.tobytes())
        os.fsync(file.fileno())  # the kernel drops only pages that are on the disk


def _seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _numpy_order(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A full permutation in NumPy: the id and the end of every document in the epoch's order."""
    order = np.random.default_rng(0).permutation(len(lengths)).astype(np.uint32)
    return order, np.cumsum(lengths[order], dtype=np.int64)


def _measure_index(shards: SyntheticShards, repeats: int) -> dict[str, Any]:
    """Time to build the index of an epoch, to open a stored index, and to find a new window."""
    lengths, random = shards.lengths, np.random.default_rng(2)
    built = [_seconds(lambda e=e: EpochIndex(lengths, 1337, e)) for e in range(repeats)]
    index = open_index(shards, 1337, 0)
    stream = OneSource(TrainingStream(shards, 1337))
    windows = random.integers(0, shards.tokens // _T - 1, 200).tolist()
    read_windows(stream, windows[0], 1, _T)
    cold = [1e3 * _seconds(lambda w=w: read_windows(stream, w, 1, _T)) for w in windows[1:]]
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    baseline = []
    for _ in range(repeats):
        kept.clear()
        baseline.append(_seconds(lambda: kept.append(_numpy_order(lengths))))
    return {
        "documents": shards.documents,
        "tokens": shards.tokens,
        "build_seconds": built,
        "open_kept_seconds": [_seconds(lambda: open_index(shards, 1337, 0)) for _ in built],
        "index_mb": index.starts.nbytes / 1e6,
        "cold_window_ms": cold,
        "numpy_build_seconds": baseline,
        "numpy_index_mb": sum(array.nbytes for array in kept[0]) / 1e6,
    }


def _read_steps(
    shards: TokenShards, world_size: int, tokens: int, digest: bool, skip: int
) -> float:
    """Tokens/s of one rank that reads its micro-batches as the loader does."""
    stream = OneSource(TrainingStream(shards, 1337))
    read_windows(stream, 0, 1, _T)  # builds or opens the index
    first, count = skip * _MICRO_BATCH * world_size, tokens // (_MICRO_BATCH * _T)
    start = time.perf_counter()
    for turn in range(count):
        window = first + turn * world_size * _MICRO_BATCH
        windows = read_windows(stream, window, _MICRO_BATCH, _T)
        if digest:
            windows_digest(window, windows)
    return count * _MICRO_BATCH * _T / (time.perf_counter() - start)


def _measure_reading(
    shards: SyntheticShards, mapped: _MappedShards, repeats: int
) -> dict[str, Any]:
    """Tokens/s of one rank, read from the page cache and from the disk."""
    found: dict[str, Any] = {}
    warm, cold = 100_000_000, 8_000_000
    shards.file.read_bytes()
    for name, ranks, digest in (("alone", 1, False), ("of_8", 8, False), ("with_digest", 1, True)):
        found[f"tokens_per_second_{name}"] = [
            _read_steps(shards, ranks, warm, digest, 0) for _ in range(repeats)
        ]
    found["mapped_tokens_per_second"] = [
        _read_steps(mapped, 1, warm, False, 0) for _ in range(repeats)
    ]
    for name, kind in (("", shards), ("mapped_", mapped)):
        rates = found[f"{name}cold_tokens_per_second"] = []
        for turn in range(repeats):
            mapped.mapped = None  # mapped pages would stay in the cache
            _drop_from_page_cache(shards.file)
            rates.append(_read_steps(kind, 1, cold, False, 1000 * (turn + 1)))
    return found


def _drop_from_page_cache(path: Path) -> None:
    """Drop a file's pages from the cache, so that the next read comes from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _table(rows: list[dict[str, Any]]) -> str:
    """Medians as Markdown, with NumPy's full permutation and memory maps for comparison."""

    def median(row: dict[str, Any], key: str) -> float:
        return float(np.median(row[key]))

    lines = ["| | " + " | ".join(f"{row['documents']:,} documents" for row in rows) + " |"]
    lines.append("| --- |" + " ---: |" * len(rows))
    for title, key, scale, form in (
        ("index of an epoch, s", "build_seconds", 1, ".2f"),
        ("index as a full NumPy permutation, s", "numpy_build_seconds", 1, ".2f"),
        ("size of the index, MB", "index_mb", 1, ".2f"),
        ("size as a full NumPy permutation, MB", "numpy_index_mb", 1, ",.0f"),
        ("open the stored index, ms", "open_kept_seconds", 1e3, ".2f"),
        ("find and read a new window of 1024, ms", "cold_window_ms", 1, ".2f"),
        ("one rank, page cache, M tokens/s", "tokens_per_second_alone", 1e-6, ".0f"),
        ("rank 0 of 8, page cache, M tokens/s", "tokens_per_second_of_8", 1e-6, ".0f"),
        ("one rank with the digest, M tokens/s", "tokens_per_second_with_digest", 1e-6, ".0f"),
        ("one rank, memory map, M tokens/s", "mapped_tokens_per_second", 1e-6, ".0f"),
        ("one rank, cold disk, M tokens/s", "cold_tokens_per_second", 1e-6, ".1f"),
        ("one rank, cold memory map, M tokens/s", "mapped_cold_tokens_per_second", 1e-6, ".1f"),
    ):
        cells = " | ".join(format(median(row, key) * scale, form) for row in rows)
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure each synthetic data set, write the JSON file, print the table."""
    options = parse_options(Options, description=__doc__)
    found = provenance(("numpy",))
    rows = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        write_tokens(folder / "tokens.bin", options.file_tokens)
        for documents in options.documents:
            lengths = synthetic_lengths(documents)
            shards = SyntheticShards(folder, lengths, options.file_tokens)
            mapped = _MappedShards(folder, lengths, options.file_tokens)
            rows.append(_measure_index(shards, options.repeats))
            rows[-1] |= _measure_reading(shards, mapped, options.repeats)
    data = f"lognormal lengths, mean {_MEAN_TOKENS}; random tokens in one scratch file"
    write_json(options.out, {**found, "data": data, "rows": rows})
    sys.stdout.write(_table(rows) + "\n")


if __name__ == "__main__":
    main()
