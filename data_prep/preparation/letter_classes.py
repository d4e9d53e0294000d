"""Finds the characters that two encoders class differently: letter, digit, space, other.

A pattern cuts text into words by these classes, and each encoder has them from the version of
Unicode that it was built with. Where the classes agree, so do the words, whatever the ranks are.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import tiktoken

from data_prep.tokenizer import Tokenizer
from storage.byte_pairs import GPT2_PATTERN, ranks_file
from storage.vocabularies.library import characters_of_class

ASCII = range(1, 0x80)
# All that Unicode has assigned, but for tags and private use. Characters behind them are rare and
# are taken for different without a test.
_TESTED = (*range(0x80, 0xD800), *range(0xE000, 0x40000))
_UNTESTED = {b"\xf1", b"\xf2", b"\xf3", b"\xf4"}  # how the others begin in UTF-8
_BLOCK = 2048  # characters that are compared at once
# A letter, a digit and something else: each joins a character before it only if that is of the
# same class, and the ranks below make this visible.
_FOLLOWERS = (b"a", b"1", b"!")

# The classes of characters in a pattern, and what else differs between versions of Unicode.
_CLASS = re.compile(r"\\[pP]\{\^?\w+\}|\\[sSdDwW]")
_LETTERS_OF_ANY_CASE = "(?i:[a-z])"

_Encode = Callable[[str], np.ndarray]


def class_probe(pattern: str = GPT2_PATTERN) -> Tokenizer:
    """A tokenizer whose ids show the class of each character outside ASCII, and in it.

    Its only merges are those of a byte with a following `a`, `1` or `!`. They happen inside a word.
    """
    single = [bytes([byte]) for byte in range(256)]
    pairs = [byte + follower for follower in _FOLLOWERS for byte in single]
    return Tokenizer("classes", pattern, ranks_file([*single, *pairs]))


def differing(first: _Encode, second: _Encode, code_points: Sequence[int]) -> list[int]:
    """The code points whose class the two probes show differently."""
    found: list[int] = []
    for start in range(0, len(code_points), _BLOCK):
        found += _differing_in(first, second, code_points[start : start + _BLOCK])
    return found


def differing_outside_ascii(first: _Encode, second: _Encode) -> list[int]:
    """The same, of all characters that Unicode may have assigned."""
    return differing(first, second, _TESTED)


def _differing_in(first: _Encode, second: _Encode, code_points: Sequence[int]) -> list[int]:
    followers = [follower.decode() for follower in _FOLLOWERS]
    text = "".join(chr(code) + follower for code in code_points for follower in followers)
    if np.array_equal(first(text), second(text)):
        return []
    if len(code_points) == 1:
        return list(code_points)
    half = len(code_points) // 2
    return [
        *_differing_in(first, second, code_points[:half]),
        *_differing_in(first, second, code_points[half:]),
    ]


def classed_differently(pattern: str, code_points: Sequence[int] = _TESTED) -> list[int]:
    """The code points that tiktoken and `tokenizers` class differently, in a pattern's classes."""
    classes = set(_CLASS.findall(pattern)) | ({_LETTERS_OF_ANY_CASE} if "(?i" in pattern else set())
    return _differing_in_classes(frozenset(classes), code_points)


@cache
def _differing_in_classes(classes: frozenset[str], code_points: Sequence[int]) -> list[int]:
    """It takes half a second for all of Unicode."""
    text = "".join(map(chr, code_points))
    ranks = {bytes([byte]): byte for byte in range(256)}
    found: set[str] = set()
    for kind in classes:
        first = tiktoken.Encoding("classes", pat_str=kind, mergeable_ranks=ranks, special_tokens={})
        ids = first.encode_to_numpy(text)
        found |= set(bytes(ids.astype(np.uint8)).decode()) ^ characters_of_class(kind, text)
    return sorted(map(ord, found))


class CharacterFinder:
    """Finds any of some characters, or one that was not tested, in UTF-8."""

    def __init__(self, code_points: Iterable[int]) -> None:
        characters = [chr(code).encode() for code in code_points]
        # A search for one byte is 50 times as fast as the pattern, and most texts have none.
        self._first_bytes = {character[:1] for character in characters} | _UNTESTED
        branches = [*_UNTESTED, *_branches(characters)]
        self._pattern = re.compile(b"|".join(branches), re.DOTALL)

    def is_in(self, text: bytes) -> bool:
        """Whether one of the characters is in the text."""
        if text.isascii() or not any(byte in text for byte in self._first_bytes):
            return False
        return self._pattern.search(text) is not None


def _branches(ends: Iterable[bytes]) -> list[bytes]:
    """Patterns of byte strings, one for each first byte, so that a search looks at few of them."""
    by_first: dict[int, list[bytes]] = defaultdict(list)
    for end in ends:
        by_first[end[0]].append(end[1:])
    last = b"".join(re.escape(bytes([byte])) for byte, rest in by_first.items() if rest == [b""])
    longer = [
        re.escape(bytes([byte])) + b"(?:" + b"|".join(_branches(rest)) + b")"
        for byte, rest in by_first.items()
        if rest != [b""]
    ]
    return [*longer, *([b"[" + last + b"]"] if last else [])]
