"""A data set on disk: open it, check its files, and read tokens by document or by position.

The folder holds `train_000000.npy …` and `val_000000.npy …` (1-D tokens, uint16 or uint32 by the
size of the vocabulary). Beside each are its `.lengths.npy` (uint32, tokens of each document) and
`.source.npy` (uint32, file and row of each document). Then there are `tokenizer/` and
`manifest.json`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data_prep.dataset.manifest import Manifest, ShardEntry, SplitEntry, SplitName, read_manifest
from data_prep.dataset.token_files import TokenFiles
from data_prep.tokenizer import Tokenizer, load_tokenizer
from storage.atomic import remove_leftovers
from storage.digest import DigestCache, file_sha256, fingerprint

LENGTH = np.dtype("<u4")
PLACE = np.dtype("<u4")

_CheckMode = Literal["full", "cached", "size"]
_MAX_HEADER_BYTES = 1 << 17  # of version 1.0, which NumPy writes, at most 65,545
_STRIDE = 16  # documents between two positions kept in memory: 50 MB for 100 million documents
_IN_BLOCK = np.arange(_STRIDE)


@dataclass(frozen=True)
class DataSet:
    """An opened data set: its manifest is read, and the header and size of every shard match it."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        """One sha256 over the content of the manifest, which includes the digests of all shards."""
        return self.manifest.fingerprint

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens. Raises: ValueError if its files are not its own."""
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        expected = self.manifest.tokenizer.ranks_sha256
        # Older versions recorded the digest of the ranks alone, whatever the pattern.
        if expected not in (tokenizer.ranks_sha256, hashlib.sha256(tokenizer.ranks).hexdigest()):
            raise ValueError(
                f"{self.folder / 'tokenizer'} holds ranks of sha256 {tokenizer.ranks_sha256}, but "
                f"the tokens were made with {expected}; prepare the data set again"
            )
        return tokenizer

    def split(self, name: SplitName) -> "TokenShards":
        """The tokens of one split. Raises: ValueError if there are none."""
        if name not in ("train", "val"):
            raise ValueError(f"split={name} is not known; use train or val")
        entry = self.manifest.split(name)
        if entry.tokens == 0:
            raise ValueError(
                f"{self.folder} has no {name} tokens; prepare it again with another --val-tokens"
            )
        return TokenShards(self.folder, entry, self.manifest.token_dtype)


class TokenShards:
    """All tokens of one split in file order, read-only; safe to use from several threads."""

    def __init__(self, folder: Path, entry: SplitEntry, dtype: np.dtype) -> None:
        self.folder = folder
        self.tokens = entry.tokens
        self.documents = entry.documents
        self.token_dtype = dtype
        self.lengths_sha256 = fingerprint([shard.lengths_sha256 for shard in entry.shards])
        self._names = [shard.name for shard in entry.shards]
        paths = [folder / f"{name}.npy" for name in self._names]
        self._files = TokenFiles(paths, [shard.tokens for shard in entry.shards], dtype)

    @property
    def descriptors(self) -> dict[Path, int]:
        """The open files of tokens, by their paths."""
        return self._files.descriptors

    @cached_property
    def lengths(self) -> np.ndarray:
        """Length of every document in file order, uint32, with the end-of-text that opens it."""
        # Loaded into memory (4 bytes per document) and not memory-mapped: if a mapped file is
        # truncated, the next access kills the process with SIGBUS instead of raising an error.
        found = [np.load(self.folder / f"{name}.lengths.npy") for name in self._names]
        return np.concatenate(found) if len(found) > 1 else found[0]

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The lengths from any document on, (documents, _STRIDE), and each block's first position.

        A block begins at every _STRIDE-th document. The last one, which may be shorter, begins
        earlier, so that all have _STRIDE.
        """
        lengths = self.lengths
        if len(lengths) < _STRIDE:
            lengths = np.pad(lengths, (0, _STRIDE - len(lengths)))
        near = sliding_window_view(lengths, _STRIDE)
        firsts = np.minimum(np.arange(0, self.documents, _STRIDE), len(near) - 1)
        sums = np.add.reduceat(lengths, firsts, dtype=np.int64)
        return near, np.cumsum(sums) - sums

    def document_starts(self, ids: np.ndarray) -> np.ndarray:
        """Position in the split of each document's first token, int64."""
        near, starts = self._blocks
        ids = ids.astype(np.int64)
        # To the start of its block, add the lengths of the documents before it in the block.
        block = ids // _STRIDE
        first = np.minimum(block * _STRIDE, len(near) - 1)
        is_before = (ids - first)[:, None] > _IN_BLOCK  # (ids, _STRIDE)
        return starts[block] + np.where(is_before, near[first], 0).sum(axis=1, dtype=np.int64)

    def read_document(self, index: int) -> np.ndarray:
        """The tokens of a document; the first is end-of-text."""
        if not 0 <= index < self.documents:
            raise ValueError(f"document {index} is not one of the {self.documents}, from 0")
        start = self.document_starts(np.array([index]))
        return self.read(int(start[0]), int(self.lengths[index]))

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) in file order, across shards."""
        if start < 0 or count < 0 or start + count > self.tokens:
            raise ValueError(
                f"tokens [{start}, {start + count}) are not within the {self.tokens} of this split"
            )
        return self._files.read(start, count)

    def gather(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The ranges [start, start + count) concatenated; none may cross a shard."""
        return self._files.gather(starts, counts)

    def source_places(self) -> Iterator[np.ndarray]:
        """Source file and row of every document, shard by shard.

        Shapes: (documents, 2), uint32.
        """
        for name in self._names:
            yield np.load(self.folder / f"{name}.source.npy", mmap_mode="r").view(np.ndarray)


def open_data_set(folder: Path) -> DataSet:
    """The data set in `folder`; reads its manifest and checks the header and size of every file.

    Raises: ValueError if it is missing or incomplete, or if a file does not match the manifest.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for shard in (*manifest.train.shards, *manifest.val.shards):
        _check_header(folder / f"{shard.name}.npy", manifest.token_dtype, (shard.tokens,))
        _check_header(folder / f"{shard.name}.lengths.npy", LENGTH, (shard.documents,))
        _check_header(folder / f"{shard.name}.source.npy", PLACE, (shard.documents, 2))
        if shard.max_id >= manifest.tokenizer.n_vocab:
            raise ValueError(_vocabulary_message(folder, shard.name, shard.max_id, manifest))
    return DataSet(folder, manifest)


def _check_header(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy it again or prepare the data set again")
    cure = "prepare the data set again"
    # Only the header is read, and nothing is unpickled, whatever the file holds.
    try:
        with path.open("rb") as file:
            head = BytesIO(file.read(_MAX_HEADER_BYTES))  # a header can claim gigabytes
        found_shape, fortran, found_dtype = _read_header(head)
        header_bytes = head.tell()
    except Exception as error:  # NumPy parses the header as Python, which can fail in any way
        raise ValueError(f"{path} is not a .npy file ({error}); {cure}") from error
    if found_dtype != dtype:
        raise ValueError(f"{path} holds {found_dtype.str}, but must hold {dtype.str}; {cure}")
    if len(found_shape) != len(shape) or (fortran and len(shape) > 1):
        raise ValueError(
            f"{path} has shape {found_shape}{' in Fortran order' if fortran else ''}, but must "
            f"have {len(shape)} dimension(s) in C order; {cure}"
        )
    if found_shape != shape:
        raise ValueError(f"{path} has shape {found_shape}, the manifest says {shape}; {cure}")
    expected = header_bytes + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path} is {path.stat().st_size} bytes, but must be {expected}; "
            f"copy it again or {cure}"
        )


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"its version {version} is not 1.0 or 2.0")


def check_data_set(data: DataSet, mode: _CheckMode, share: tuple[int, int] = (0, 1)) -> None:
    """Compare the bytes of the data set with its manifest.

    `full` hashes every file. `cached` hashes only files whose size, modification or change time, or
    inode differs from when they were last hashed. `size` relies on the check of `open_data_set`.
    `share=(i, n)` checks only the shards i, i + n, i + 2n, …, so that n processes can divide the
    work.
    Raises: ValueError naming the first file that differs.
    """
    if mode not in ("full", "cached", "size"):
        raise ValueError(f"data_check={mode} is not known; use full, cached or size")
    if mode == "size":
        return
    index, count = share
    remove_leftovers(data.folder)
    # One file of cached digests for each process, so that none overwrites another's.
    cache = DigestCache(data.folder / f".digests-{index}-of-{count}.json")
    # What other processes have hashed counts too: another number of ranks, or a tool, hashes less.
    for other in data.folder.glob(".digests-*.json"):
        cache.known = DigestCache(other).known | cache.known
    if mode == "full":
        cache.known = {}
    shards = (*data.manifest.train.shards, *data.manifest.val.shards)
    try:
        for shard in shards[index::count]:
            _check_shard(data, shard, cache)
    finally:
        cache.save()


def _check_shard(data: DataSet, shard: ShardEntry, cache: DigestCache) -> None:
    hashed = False
    for name, expected in shard.files().items():
        before = cache.known.get(name)
        found = cache.sha256(data.folder / name)
        if found != expected and cache.known[name] is before:  # the cached digest may be wrong
            cache.forget(data.folder / name)
            found = cache.sha256(data.folder / name)
        if found != expected:
            cache.forget(data.folder / name)
            raise ValueError(
                f"{data.folder / name} has sha256 {found}, the manifest says {expected}: the file "
                "is damaged or was changed; copy it again or prepare the data set again"
            )
        hashed = hashed or cache.known[name] is not before
    if hashed:
        try:
            check_content(data, shard)
        except ValueError:
            for name in shard.files():  # otherwise the next check would skip these files
                del cache.known[name]
            raise


def check_content(data: DataSet, shard: ShardEntry) -> None:
    """Check ids and lengths, even if the manifest was rewritten to fit a changed shard.

    Raises: ValueError naming the file with an invalid id or length.
    """
    folder, manifest = data.folder, data.manifest
    tokens = np.load(folder / f"{shard.name}.npy", mmap_mode="r")
    lengths = np.load(folder / f"{shard.name}.lengths.npy")
    largest = int(tokens.max())
    if largest >= manifest.tokenizer.n_vocab:
        raise ValueError(_vocabulary_message(folder, shard.name, largest, manifest))
    ends = np.cumsum(lengths, dtype=np.int64)
    complete = ends[-1] == len(tokens) and lengths.min() > 0
    if not complete or (tokens[ends - lengths] != manifest.tokenizer.end_of_text).any():
        raise ValueError(
            f"{folder / shard.name}.lengths.npy does not cut {shard.name}.npy into documents that "
            f"each open with end-of-text; prepare the data set again"
        )


def _vocabulary_message(folder: Path, name: str, largest: int, manifest: Manifest) -> str:
    return (
        f"{folder / name}.npy holds the id {largest}, but the tokenizer "
        f"{manifest.tokenizer.name} has only the ids below {manifest.tokenizer.n_vocab}; "
        "prepare the data set again"
    )


def shard_entry(folder: Path, name: str, text_bytes: int) -> ShardEntry:
    """The manifest entry of the shard `name`, computed from its three files in `folder`."""
    tokens = np.load(folder / f"{name}.npy", mmap_mode="r")
    lengths = np.load(folder / f"{name}.lengths.npy", mmap_mode="r")
    return ShardEntry(
        name=name,
        tokens=len(tokens),
        documents=len(lengths),
        text_bytes=text_bytes,
        max_id=int(tokens.max()),
        tokens_sha256=file_sha256(folder / f"{name}.npy"),
        lengths_sha256=file_sha256(folder / f"{name}.lengths.npy"),
        source_sha256=file_sha256(folder / f"{name}.source.npy"),
    )
