"""A tiny but valid data set for tests, written in milliseconds without a process pool."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.dataset.manifest import (
    Manifest,
    ShardEntry,
    SourceEntry,
    SourceFile,
    SplitEntry,
    TokenizerEntry,
    read_manifest,
    split_entry,
    token_format,
)
from data_prep.dataset.shards import LENGTH, PLACE, DataSet, open_data_set, shard_entry
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from storage.byte_pairs import token_dtype

_SMALL = Path(__file__).parent / "golden" / "format_1" / "data_set" / "tokenizer"


def small_tokenizer() -> Tokenizer:
    """Three hundred ids: a run takes a quarter of the time that it takes with GPT-2's."""
    return load_tokenizer(_SMALL)


def tiny_data_set(
    folder: Path,
    documents: int = 200,
    seed: int = 0,
    vocab: int | None = None,
    val_fraction: float = 0.1,
    shards: int = 2,
    lengths: list[int] | None = None,
    mean_length: int = 60,
    tokenizer: Tokenizer | None = None,
) -> DataSet:
    """Documents of random ids below `vocab`, in `shards` train shards.

    Default: all ids of `tokenizer`, and GPT-2's tokenizer. A tenth of the documents is validation;
    `lengths` gives the token counts one by one instead.
    The ids fall off like 1/rank, so a model has a unigram distribution to learn.
    """
    random = np.random.default_rng(seed)
    tokenizer = tokenizer or gpt2_tokenizer()
    drawn = lengths or [int(n) for n in random.integers(2, 2 * mean_length, documents)]
    ids = tokenizer.end_of_text if vocab is None else min(vocab, tokenizer.end_of_text)
    texts = [_document(random, length, ids, tokenizer) for length in drawn]
    val = round(len(texts) * val_fraction)
    folder.mkdir(parents=True)
    tokenizer.save(folder / "tokenizer")
    parts = np.array_split(np.arange(val, len(texts)), min(shards, len(texts) - val))
    n_vocab = tokenizer.n_vocab
    train = [_shard(folder, f"train_{i:06d}", texts, part, n_vocab) for i, part in enumerate(parts)]
    held_out = [_shard(folder, "val_000000", texts, np.arange(val), n_vocab)] if val else []
    Manifest(
        **token_format(tokenizer.n_vocab),
        tokenizer=TokenizerEntry(
            tokenizer.name, tokenizer.ranks_sha256, tokenizer.n_vocab, tokenizer.end_of_text
        ),
        source=SourceEntry("tiny", str(seed), (SourceFile("none", 0, ""),)),
        settings={"seed": seed},
        split_rule={"split": "first"},
        skipped_empty=0,
        train=_split(folder, train, n_vocab),
        val=_split(folder, held_out, n_vocab),
    ).sealed().write(folder)
    return open_data_set(folder)


def save_shard(
    folder: Path,
    name: str,
    tokens: np.ndarray,
    lengths: np.ndarray,
    places: np.ndarray,
    n_vocab: int = 50_257,
) -> None:
    """Write a shard's three files.

    Shapes: tokens (tokens,), lengths (documents,), places (documents, 2): source file and row.
    """
    np.save(folder / f"{name}.npy", tokens.astype(token_dtype(n_vocab), copy=False))
    np.save(folder / f"{name}.lengths.npy", lengths.astype(LENGTH, copy=False))
    np.save(folder / f"{name}.source.npy", places.astype(PLACE, copy=False))


def rewrite_manifest(folder: Path, **changes) -> None:
    """Change fields of the manifest and seal it again, as a careful forger would."""
    replace(read_manifest(folder), **changes).sealed().write(folder)


def _document(
    random: np.random.Generator, length: int, ids: int, tokenizer: Tokenizer
) -> np.ndarray:
    tokens = np.exp(random.uniform(0, np.log(ids), length)).astype(tokenizer.token_dtype)
    tokens[0] = tokenizer.end_of_text
    return tokens


def _shard(
    folder: Path, name: str, texts: list[np.ndarray], which: np.ndarray, n_vocab: int
) -> ShardEntry:
    chosen = [texts[i] for i in which]
    places = np.stack([np.zeros_like(which), which], axis=1)
    lengths = np.array([*map(len, chosen)])
    save_shard(folder, name, np.concatenate(chosen), lengths, places, n_vocab)
    return shard_entry(folder, name, text_bytes=sum(4 * len(text) for text in chosen))


def _split(folder: Path, shards: list[ShardEntry], n_vocab: int) -> SplitEntry:
    counts = np.zeros(n_vocab, np.int64)
    for shard in shards:
        counts += np.bincount(np.load(folder / f"{shard.name}.npy"), minlength=n_vocab)
    return split_entry(tuple(shards), counts)
