"""Learns the merges of a byte-level BPE from text.

With GPT-2's pattern gigatoken does it: it gives the same ids as Hugging Face's `tokenizers` in a
tenth of the time (bench/LOG.md). With any other pattern those do it.
"""

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.vocabulary.by_tokenizers import check_can_learn_words, learn_words
from data_prep.vocabulary.silence import silenced
from storage.byte_pairs import GPT2_PATTERN, check_vocabulary

try:
    import gigatoken
except ImportError:
    gigatoken = None

NO_TEXT = b"\xff"  # separates documents: a byte that never occurs in UTF-8
_MIN_VOCABULARY = 257  # all bytes and end-of-text, without any merge


def check_vocab_size(vocab_size: int) -> None:
    """Raises: ValueError for a number of ids that no tokenizer of ours can have."""
    check_vocabulary(f"vocab_size={vocab_size}", vocab_size)
    if vocab_size < _MIN_VOCABULARY:
        raise ValueError(
            f"vocab_size={vocab_size} is less than the 256 bytes and end-of-text; "
            f"use {_MIN_VOCABULARY} or more"
        )


def check_can_learn(pattern: str = GPT2_PATTERN) -> None:
    """Raises: ValueError if the library that learns with this pattern is missing."""
    if pattern != GPT2_PATTERN:
        check_can_learn_words()
    elif gigatoken is None:
        raise ValueError("training a tokenizer needs gigatoken; `pip install -e '.[fast]'`")


def learn_merges(
    text: bytes | Path,
    vocab_size: int,
    pattern: str = GPT2_PATTERN,
    end_phase: Callable[[str], None] = lambda name: None,
) -> list[bytes]:
    """The tokens by id, without end-of-text; fewer than asked for if the text gives no more.

    `text` is texts or a file of texts, each followed by NO_TEXT. `end_phase` is called after
    each phase with its name.
    Raises: ValueError if the library that learns is missing.
    """
    check_can_learn(pattern)
    if pattern != GPT2_PATTERN:
        if isinstance(text, Path) and not text.stat().st_size:
            text = b""  # an empty file cannot be mapped
        if isinstance(text, bytes):
            return learn_words(_texts(text), vocab_size - 1, pattern, end_phase)
        with text.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            return learn_words(_texts(whole), vocab_size - 1, pattern, end_phase)
    assert gigatoken is not None
    with silenced():
        if isinstance(text, Path):
            source = gigatoken.TextFileSource([text], separator=NO_TEXT)
            vocabulary, _ = gigatoken.train_bpe(source, vocab_size - 1, [])
        else:
            vocabulary, _ = gigatoken.train_bpe(text, vocab_size - 1, [], separator=NO_TEXT)
    end_phase("words counted and merged")
    # Two pairs of tokens can have the same bytes; the first one is the token.
    return list(dict.fromkeys(vocabulary[token] for token in sorted(vocabulary)))


def _texts(joined: bytes | mmap.mmap) -> Iterator[str]:
    """The texts that are each followed by NO_TEXT, but for the last."""
    at = 0
    while (end := joined.find(NO_TEXT, at)) >= 0:
        yield joined[at:end].decode()
        at = end + 1
    yield joined[at:].decode()
