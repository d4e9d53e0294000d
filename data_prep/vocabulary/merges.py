"""Learns the merges of a byte-level BPE from text, with gigatoken.

It gives the same ids as Hugging Face's `tokenizers` in a tenth of the time (bench/LOG.md).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.byte_pairs import check_vocabulary

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


def check_can_learn() -> None:
    """Raises: ValueError if gigatoken is missing."""
    if gigatoken is None:
        raise ValueError("training a tokenizer needs gigatoken; `pip install -e '.[fast]'`")


def learn_merges(text: bytes | Path, vocab_size: int) -> list[bytes]:
    """The tokens by id, without end-of-text; fewer than asked for if the text gives no more.

    `text` is texts or a file of texts, each followed by NO_TEXT.
    Raises: ValueError if gigatoken is missing.
    """
    check_can_learn()
    assert gigatoken is not None
    with _silenced():
        if isinstance(text, Path):
            source = gigatoken.TextFileSource([text], separator=NO_TEXT)
            vocabulary, _ = gigatoken.train_bpe(source, vocab_size - 1, [])
        else:
            vocabulary, _ = gigatoken.train_bpe(text, vocab_size - 1, [], separator=NO_TEXT)
    # Two pairs of tokens can have the same bytes; the first one is the token.
    return list(dict.fromkeys(vocabulary[token] for token in sorted(vocabulary)))


@contextmanager
def _silenced() -> Iterator[None]:
    """Discard what a native library prints."""
    # It writes to file descriptors 1 and 2 itself, so replacing sys.stdout would not do.
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as null:
            for number, _ in saved:
                os.dup2(null.fileno(), number)
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
