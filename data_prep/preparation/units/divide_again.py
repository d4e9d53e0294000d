"""Divides the documents of a finished unit again, without making tokens again.

The share of validation changes when the source becomes larger or smaller.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.dataset.manifest import ShardEntry
from data_prep.dataset.shards import shard_entry
from data_prep.dataset.token_files import TokenFiles
from data_prep.preparation.duplicates import HASH_FILES
from data_prep.preparation.units.record import UnitResult
from storage.atomic import load_array, publish_folder, save_array
from storage.byte_pairs import token_dtype

_AT_ONCE = 1 << 13  # documents that are copied at a time


def divide_again(
    folder: Path, found: UnitResult, in_val: np.ndarray, split: list[Any], token_bytes: np.ndarray
) -> UnitResult:
    """Replace the unit in `folder`: `in_val` says of each document whether it is validation.

    The files stay as they are if no document changes sides. A kill leaves the unit unfinished.
    Shapes: in_val (documents,), token_bytes (n_vocab,).
    """
    dtype = token_dtype(len(token_bytes))
    shards = _UnitShards(folder, dtype) if found.shards() else None
    if shards is None or np.array_equal(shards.in_val, in_val):
        result = replace(found, split=split)
        result.write(folder)
        return result
    new = folder.with_name(f".{folder.name}.divided.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    result = replace(found, split=split, **shards.write(new, in_val, token_bytes))
    for name in HASH_FILES:
        shutil.copyfile(folder / name, new / name)
    result.write(new)
    shutil.rmtree(folder)
    publish_folder(new, folder)
    return result


class _UnitShards:
    """The train and the val shard of one folder as one list of documents, in source order."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        names = [name for name in ("train", "val") if (folder / f"{name}.npy").exists()]
        cure = f"delete {folder} and start again"
        lengths = [load_array(folder / f"{name}.lengths.npy", cure) for name in names]
        places = np.concatenate([load_array(folder / f"{name}.source.npy", cure) for name in names])
        order = np.lexsort((places[:, 1], places[:, 0]))
        all_lengths = np.concatenate(lengths)
        in_val = [
            np.full(len(found), name == "val") for name, found in zip(names, lengths, strict=True)
        ]
        self.in_val = np.concatenate(in_val)[order]
        self._lengths = all_lengths[order]
        self._starts = (np.cumsum(all_lengths, dtype=np.int64) - all_lengths)[order]
        self._places = places[order]
        sizes = [int(found.sum(dtype=np.int64)) for found in lengths]
        self._tokens = TokenFiles([folder / f"{name}.npy" for name in names], sizes, dtype)

    def write(
        self, folder: Path, in_val: np.ndarray, token_bytes: np.ndarray
    ) -> dict[str, ShardEntry | None]:
        """Write both shards to another folder."""
        chosen = {"train": np.flatnonzero(~in_val), "val": np.flatnonzero(in_val)}
        return {
            name: self._write(folder, name, documents, token_bytes) if len(documents) else None
            for name, documents in chosen.items()
        }

    def _write(
        self, folder: Path, name: str, documents: np.ndarray, token_bytes: np.ndarray
    ) -> ShardEntry:
        lengths = self._lengths[documents]
        shape = (int(lengths.sum(dtype=np.int64)),)
        counts = np.zeros(len(token_bytes), np.int64)
        with (folder / f"{name}.npy").open("wb") as file:
            header = {"descr": self._tokens.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for first in range(0, len(documents), _AT_ONCE):
                some = documents[first : first + _AT_ONCE]
                counted = self._lengths[some].astype(np.int64)
                found = self._tokens.gather(self._starts[some], counted)
                file.write(found.data)
                counts += np.bincount(found, minlength=len(counts))
        save_array(folder / f"{name}.lengths.npy", lengths)
        save_array(folder / f"{name}.source.npy", self._places[documents])
        save_array(folder / f"{name}.counts.npy", counts)
        return shard_entry(folder, name, int(counts @ token_bytes.astype(np.int64)))
