"""A tokenizer of more than 65,536 ids, and text whose words have ids on both sides of that."""

import random
from functools import cache
from itertools import islice, product
from string import ascii_lowercase

from data_prep.tokenizer import Tokenizer
from storage.byte_pairs import GPT2_PATTERN, ranks_file

N_VOCAB = 66_048


@cache
def _words() -> list[str]:
    """Made-up words of one to four letters, each of which is an earlier one and a letter."""
    words = (
        "".join(letters) for n in range(1, 5) for letters in product(ascii_lowercase, repeat=n)
    )
    return list(islice(words, N_VOCAB - 1 - 256))


@cache
def wide_tokenizer() -> Tokenizer:
    """All bytes, and made-up words with the space before them."""
    tokens = [*(bytes([byte]) for byte in range(256)), *(f" {word}".encode() for word in _words())]
    return Tokenizer("wide", GPT2_PATTERN, ranks_file(tokens))


def wide_text(number: int, words: int = 40) -> str:
    """One document: some words with ids beyond 65,535, some below, and bytes."""
    chosen = random.Random(number)
    early, late = _words()[:1000], _words()[65_536 - 256 :]
    return f"{number}:" + "".join(
        f" {chosen.choice(late if chosen.random() < 0.3 else early)}" for _ in range(words)
    )
