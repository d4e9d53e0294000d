"""Preparation by a process pool like build-nanogpt's, to compare with.

A substitute written from a description of build-nanogpt (https://github.com/karpathy/
build-nanogpt): a multiprocessing pool gets each row of `datasets` and returns it as an array.
build-nanogpt uses half of the cores.
"""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset

from data_prep.tokenizer import Tokenizer, gpt2_tokenizer

_SHARD_TOKENS = 100_000_000
_CHUNK_SIZE = 16

_tokenizer: Tokenizer | None = None


def _start_pool_worker() -> None:
    global _tokenizer
    _tokenizer = gpt2_tokenizer()


def _tokenize_row(row: dict[str, Any]) -> np.ndarray:
    assert _tokenizer is not None
    tokens = [_tokenizer.end_of_text]
    tokens.extend(_tokenizer.encode(row["text"]))
    array = np.array(tokens)
    assert ((array >= 0) & (array < 2**16)).all()
    return array.astype(np.uint16)


def prepare_by_pool(paths: list[Path], out: Path, processes: int) -> int:
    """Fill shards with the rows that the pool's processes encode; returns the number of tokens."""
    out.mkdir()
    rows: Any = load_dataset(
        "parquet",
        data_files=[str(path) for path in paths],
        split="train",
        cache_dir=str(out.with_name(f"{out.name}.cache")),
    )
    shard, filled, number = np.empty(_SHARD_TOKENS, np.uint16), 0, 0
    with multiprocessing.Pool(processes, _start_pool_worker) as pool:
        for tokens in pool.imap(_tokenize_row, rows, chunksize=_CHUNK_SIZE):
            while filled + len(tokens) >= _SHARD_TOKENS:
                room = _SHARD_TOKENS - filled
                shard[filled:] = tokens[:room]
                np.save(out / f"shard_{number:06d}", shard)
                tokens, filled, number = tokens[room:], 0, number + 1
            shard[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
    if filled:
        np.save(out / f"shard_{number:06d}", shard[:filled])
    return number * _SHARD_TOKENS + filled
