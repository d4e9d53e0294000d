"""Learns merges with Hugging Face's `tokenizers`, which takes any pattern.

It counts the words that the pattern gives, and merges the most frequent pair of tokens, again and
again. gigatoken learns the same from the same words, but only with GPT-2's pattern.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from data_prep.vocabulary.silence import silenced
from storage.vocabularies.printable_bytes import byte_characters

# Characters that it gets at once: it needs about 20 bytes of memory for each, 256 times.
_PIECE = 1 << 16


def check_can_learn_words() -> None:
    """Raises: ValueError if `tokenizers` is missing."""
    _library()


def _library() -> Any:
    """The library, which is imported here because most preparations do not need it."""
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            "a pattern other than gpt2 needs Hugging Face's tokenizers; `pip install tokenizers`"
        ) from error
    return tokenizers


def words_of(text: str, pattern: str) -> list[str]:
    """The words into which the pattern splits a text; what it does not match is a word too.

    Raises: ValueError if the pattern is none, or `tokenizers` is missing.
    """
    with _as_value_error():
        return [word for word, _ in _splitting(pattern).pre_tokenize_str(text)]


def learn_words(
    texts: Iterator[str], vocab_size: int, pattern: str, end_phase: Callable[[str], None]
) -> list[bytes]:
    """The tokens by id: the bytes, then the merges in order; fewer if the texts give no more.

    `end_phase` is called when all words were counted, and at the end.
    Raises: ValueError if the pattern is none, or `tokenizers` is missing.
    """
    split = _splitting(pattern)
    tokenizers = _library()
    pre_tokenizers = tokenizers.pre_tokenizers
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    as_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, as_characters])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    with _as_value_error():
        learner.train_from_iterator(_pieces(texts, end_phase), trainer)
    end_phase("merged")
    ids = learner.get_vocab(with_added_tokens=False)
    byte_of = {character: byte for byte, character in byte_characters().items()}
    merged = [token for token in sorted(ids, key=ids.__getitem__) if len(token) > 1]
    single = [bytes([byte]) for byte in range(256)]
    return [*single, *(bytes(byte_of[character] for character in token) for token in merged)]


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Raises: ValueError where the library panics, as with a pattern that takes too long."""
    try:
        with silenced():
            yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust code
        raise ValueError(
            f"Hugging Face's tokenizers failed ({error}); nest no repetitions in the pattern"
        ) from error


def _splitting(pattern: str) -> Any:
    tokenizers = _library()
    try:
        return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # it raises nothing more precise
        raise ValueError(str(error)) from error


def _pieces(texts: Iterator[str], end_phase: Callable[[str], None]) -> Iterator[str]:
    """The texts, long ones in pieces that end with a line or a word."""
    for text in texts:
        at = 0
        while len(text) - at > _PIECE:
            cut = max(text.rfind(mark, at, at + _PIECE) for mark in "\n ")
            stop = cut if cut > at else at + _PIECE
            yield text[at:stop]
            at = stop
        yield text[at:]
    end_phase("words counted")
