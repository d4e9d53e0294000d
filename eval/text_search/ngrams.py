"""Word sequences of a few texts, looked for in a long stream of other texts, exactly.

Texts to look for go in as Needles, the stream goes by in pieces, and out comes the first document
that holds each needle. What a word is, is decided by `fold`; both sides are folded alike.

A sequence is found by a polynomial hash of its first `key_words` words over NumPy arrays, then
compared character by character, so the answer does not hang on the hash.
Shape letters: C characters of a piece, W words in it, N needles.
"""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from data_prep.tokenizer import without_surrogates

# What `fold` gives for characters that are no part of a word; folded letters are above 2.
REMOVED, SPACE, BREAK = 0, 1, 2
DOCUMENT_BREAK = "\ud800"  # opens a document: a lone surrogate, which no decoded text can hold
FOLD_RULE = (
    "a word is what white space (Unicode) delimits; letters, marks and digits (Unicode categories "
    "L, M, N) are lower-cased one by one and all other characters are removed"
)

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
FILTER_BITS = 24  # a hash's upper bits, looked up first: 16 MB, of which few per cent are set
NOT_FOUND = np.iinfo(np.int64).max
TEXTS_AT_A_TIME = 2048

Bounds = tuple[np.ndarray, np.ndarray]


@cache
def _fold_table() -> np.ndarray:
    table = np.full(sys.maxunicode + 1, REMOVED, np.uint32)
    for code in range(len(table)):
        character = chr(code)
        if character.isspace():
            table[code] = SPACE
        elif unicodedata.category(character)[0] in "LMN":
            table[code] = ord(character.lower()[0])
    table[ord(DOCUMENT_BREAK)] = BREAK
    return table


def fold(text: str) -> np.ndarray:
    """The text's characters, normalised as FOLD_RULE says. Shape (C,) uint32."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    folded = _fold_table()[characters]
    return folded[folded != REMOVED]


def _squeeze(folded: np.ndarray) -> np.ndarray:
    """The same with one space for each run of them."""
    keep = np.ones(len(folded), bool)
    keep[1:] = (folded[1:] != SPACE) | (folded[:-1] > BREAK)
    return folded[keep]


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


class HashedWords:
    """A folded text cut into words, with the hash of any run of them."""

    def __init__(self, folded: np.ndarray) -> None:
        self.codes = _squeeze(folded)
        """Characters and separators. Shape (C,)."""
        padded = np.zeros(len(self.codes) + 2, np.int8)
        padded[1:-1] = self.codes > BREAK
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        self.starts, self.ends = edges[::2], edges[1::2]  # (W,)
        self.breaks = np.flatnonzero(self.codes == BREAK)
        # Rounded up, so that few sizes of tables are kept.
        count = 1 << len(self.codes).bit_length()
        self._inverse_powers = _powers(pow(BASE, -1, 1 << 64), count)
        self._sums = np.zeros(len(self.codes) + 1, np.uint64)
        np.cumsum(self.codes * _powers(BASE, count)[: len(self.codes)], out=self._sums[1:])

    def hashes(self, words: int) -> np.ndarray:
        """Hash of each run of so many words, by the word it starts with. Shape (W - words + 1,)."""
        starts, ends = self.starts[: max(0, len(self.starts) - words + 1)], self.ends[words - 1 :]
        return (self._sums[ends] - self._sums[starts]) * self._inverse_powers[starts]


@dataclass(frozen=True)
class Patterns:
    """Word sequences to look for, in the order of their hashes."""

    key_words: int
    """How many words are hashed; every needle has as many or more."""
    codes: np.ndarray
    """The folded texts that they are cut from."""
    starts: np.ndarray
    """Needle i is `codes[starts[i] : ends[i]]`. Shape (N,)."""
    ends: np.ndarray
    hashes: np.ndarray
    """Of the first `key_words` words, rising. Shape (N,)."""
    texts: np.ndarray
    """Which text each needle was cut from. Shape (N,)."""
    longest: int
    """Words of the longest needle."""

    def words(self, pattern: int) -> str:
        """The needle as it was compared."""
        codes = self.codes[self.starts[pattern] : self.ends[pattern]].tolist()
        return "".join(" " if code == SPACE else chr(code) for code in codes)


def all_runs(texts: Sequence[str], length: int) -> Patterns:
    """Every run of `length` words within each text."""

    def bounds(words: HashedWords) -> Bounds:
        owners = np.searchsorted(words.breaks, words.starts)
        last = np.arange(length - 1, max(len(owners), length - 1))
        first = last - length + 1
        within = owners[first] == owners[last]
        return first[within], last[within]

    return _cut(texts, length, bounds)


def whole_texts(texts: Sequence[str], shortest: int) -> Patterns:
    """Every text as a whole, if it has `shortest` words or more."""

    def bounds(words: HashedWords) -> Bounds:
        counts = np.bincount(np.searchsorted(words.breaks, words.starts))
        ends = np.cumsum(counts)
        enough = counts >= shortest
        return (ends - counts)[enough], ends[enough] - 1

    return _cut(texts, shortest, bounds)


def _cut(texts: Sequence[str], key_words: int, bounds: Callable[[HashedWords], Bounds]) -> Patterns:
    """Cut needles from the texts, so many texts at a time, at the first and last words given."""
    parts = []
    seen = 0
    for begin in range(0, max(1, len(texts)), TEXTS_AT_A_TIME):
        batch = map(without_surrogates, texts[begin : begin + TEXTS_AT_A_TIME])
        words = HashedWords(fold(DOCUMENT_BREAK.join(batch)))
        first, last = bounds(words)
        starts, ends = words.starts[first], words.ends[last]
        owners = begin + np.searchsorted(words.breaks, starts)
        hashes = words.hashes(key_words)[first]
        parts.append((words.codes, seen + starts, seen + ends, hashes, owners, last - first + 1))
        seen += len(words.codes)
    codes, starts, ends, hashes, owners, lengths = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(hashes, kind="stable")
    longest = int(lengths.max(initial=1))
    return Patterns(
        key_words, codes, starts[order], ends[order], hashes[order], owners[order], longest
    )


class Finder:
    """The documents in which some needles were first seen so far."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        self.first = np.full(len(patterns.hashes), NOT_FOUND)
        """Document of each needle, or NOWHERE. Shape (N,)."""
        self._settled = np.zeros(len(patterns.hashes), bool)  # needs no look any more
        self._filter = np.zeros(1 << FILTER_BITS, bool)
        self._filter[patterns.hashes >> np.uint64(64 - FILTER_BITS)] = True

    def look(self, words: HashedWords, document: int, text_ends: bool) -> None:
        """Find needles in `words`, which begin in `document` and end with the text or go on."""
        hashes = words.hashes(self.patterns.key_words)
        maybe = np.flatnonzero(self._filter[hashes >> np.uint64(64 - FILTER_BITS)])
        places = np.searchsorted(self.patterns.hashes, hashes[maybe])
        places = np.minimum(places, len(self._settled) - 1)
        hit = (self.patterns.hashes[places] == hashes[maybe]) & ~self._settled[places]
        for start, place in zip(words.starts[maybe[hit]], places[hit], strict=True):
            here = document + int(np.searchsorted(words.breaks, start))
            self._compare(words.codes, int(start), int(place), here, text_ends)

    def _compare(
        self, codes: np.ndarray, start: int, place: int, document: int, text_ends: bool
    ) -> None:
        """Compare every needle of the same hash, the first at `place`, with what is at `start`."""
        patterns = self.patterns
        run_end = np.searchsorted(patterns.hashes, patterns.hashes[place], side="right")
        run = np.arange(place, run_end)
        for i in run[self.first[run] == NOT_FOUND]:
            pattern = patterns.codes[patterns.starts[i] : patterns.ends[i]]
            end = start + len(pattern)
            complete = codes[end] <= BREAK if end < len(codes) else text_ends
            if complete and np.array_equal(codes[start:end], pattern):
                self.first[i] = document
        self._settled[place] = (self.first[run] != NOT_FOUND).all()


class Search:
    """Looks for several kinds of needles in a stream of documents that comes in pieces.

    Keeps of the last piece only what a needle may need to be found across the seam.
    """

    def __init__(self, kinds: Sequence[Patterns], first_document: int = 0) -> None:
        self.finders = [Finder(patterns) for patterns in kinds]
        self._longest = max((patterns.longest for patterns in kinds), default=1)
        self._document = first_document - 1  # the stream's first break opens the first document
        self._tail = np.zeros(0, np.uint32)

    def feed(self, text: str, last: bool = False) -> None:
        """Go on with `text`, in which DOCUMENT_BREAK stands before every document.

        It may end anywhere between two characters; `last` says that nothing follows.
        """
        words = HashedWords(np.concatenate([self._tail, fold(text)]))
        for finder in self.finders:
            if len(finder.first):
                finder.look(words, self._document, last)
        seam = len(words.codes)
        if len(words.starts):
            seam = int(words.starts[max(0, len(words.starts) - self._longest)])
        self._document += int(np.searchsorted(words.breaks, seam))
        self._tail = words.codes[seam:]
