"""Finds word sequences of some texts in a long stream of other texts, exactly.

Texts go in as `Patterns`, the stream goes in piece by piece (`Search.feed`), and the first document
that holds each pattern comes out. `_fold` decides what a word is, for both sides alike.

A pattern is found by a polynomial hash of its first `key_words` words (the rolling hash of Rabin
and Karp, https://doi.org/10.1147/rd.312.0249) and then compared character by character, so a hash
collision cannot change the result.
Shape letters: C characters of a piece, W words in it, N patterns.
"""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from data_prep.tokenizer import without_surrogates

# Codes of `_fold` for characters that are not part of a word; those of letters are larger.
_REMOVED, _SPACE, _BREAK = 0, 1, 2
# Comes before every document: a lone surrogate, which decoded text cannot contain.
DOCUMENT_BREAK = "\ud800"
# Is written into reports, so its wording is part of their format.
FOLD_RULE = (
    "a word is what white space (Unicode) delimits; letters, marks and digits (Unicode categories "
    "L, M, N) are lower-cased one by one and all other characters are removed"
)

_BASE = 0x9E3779B97F4A7C15  # base of the hash; odd, so that it has an inverse modulo 2**64
_FILTER_BITS = 24  # upper bits of a hash, for a first test in a table of 16 MB
NOT_FOUND = np.iinfo(np.int64).max
_TEXTS_AT_A_TIME = 2048

_Bounds = tuple[np.ndarray, np.ndarray]


@cache
def _fold_table() -> np.ndarray:
    table = np.full(sys.maxunicode + 1, _REMOVED, np.uint32)
    for code in range(len(table)):
        character = chr(code)
        if character.isspace():
            table[code] = _SPACE
        elif unicodedata.category(character)[0] in "LMN":
            table[code] = ord(character.lower()[0])
    table[ord(DOCUMENT_BREAK)] = _BREAK
    return table


def _fold(text: str) -> np.ndarray:
    """The characters of a text, normalised by FOLD_RULE. Shape (C,) uint32."""
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    folded = _fold_table()[characters]
    return folded[folded != _REMOVED]


def _squeeze(folded: np.ndarray) -> np.ndarray:
    """Replace each run of spaces by one space."""
    keep = np.ones(len(folded), bool)
    keep[1:] = (folded[1:] != _SPACE) | (folded[:-1] > _BREAK)
    return folded[keep]


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


class _HashedWords:
    """A folded text split into words, with the hash of any sequence of them."""

    def __init__(self, folded: np.ndarray) -> None:
        self.codes = _squeeze(folded)
        """Characters and separators. Shape (C,)."""
        padded = np.zeros(len(self.codes) + 2, np.int8)
        padded[1:-1] = self.codes > _BREAK
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        self.starts, self.ends = edges[::2], edges[1::2]  # (W,)
        self.breaks = np.flatnonzero(self.codes == _BREAK)
        # Rounded up to a power of two, so that the cache of tables holds few sizes.
        count = 1 << len(self.codes).bit_length()
        self._inverse_powers = _powers(pow(_BASE, -1, 1 << 64), count)
        self._sums = np.zeros(len(self.codes) + 1, np.uint64)
        np.cumsum(self.codes * _powers(_BASE, count)[: len(self.codes)], out=self._sums[1:])

    def hashes(self, words: int) -> np.ndarray:
        """Hash of every sequence of `words` words, by its first word. Shape (W - words + 1,)."""
        # Prefix sums give the hash of any slice. The inverse power shifts it to position 0, so that
        # equal words have equal hashes wherever they are. All arithmetic is modulo 2**64.
        starts, ends = self.starts[: max(0, len(self.starts) - words + 1)], self.ends[words - 1 :]
        return (self._sums[ends] - self._sums[starts]) * self._inverse_powers[starts]


@dataclass(frozen=True)
class Patterns:
    """Word sequences to search for, sorted by their hashes."""

    key_words: int
    """Number of words that are hashed; no pattern is shorter."""
    codes: np.ndarray
    """The folded texts from which they are cut."""
    starts: np.ndarray
    """Pattern i is `codes[starts[i] : ends[i]]`. Shape (N,)."""
    ends: np.ndarray
    hashes: np.ndarray
    """Hashes of the first `key_words` words, ascending. Shape (N,)."""
    texts: np.ndarray
    """Index of the text from which each pattern was cut. Shape (N,)."""
    longest: int
    """Words of the longest pattern."""

    def words(self, pattern: int) -> str:
        """The words of a pattern, as they are compared."""
        codes = self.codes[self.starts[pattern] : self.ends[pattern]].tolist()
        return "".join(" " if code == _SPACE else chr(code) for code in codes)


def all_runs(texts: Sequence[str], length: int) -> Patterns:
    """Patterns for all n-grams of the texts, with n = `length` words."""

    def bounds(words: _HashedWords) -> _Bounds:
        owners = np.searchsorted(words.breaks, words.starts)
        last = np.arange(length - 1, max(len(owners), length - 1))
        first = last - length + 1
        within = owners[first] == owners[last]
        return first[within], last[within]

    return _cut(texts, length, bounds)


def whole_texts(texts: Sequence[str], shortest: int) -> Patterns:
    """One pattern per text that has at least `shortest` words: the whole text."""

    def bounds(words: _HashedWords) -> _Bounds:
        counts = np.bincount(np.searchsorted(words.breaks, words.starts))
        ends = np.cumsum(counts)
        enough = counts >= shortest
        return (ends - counts)[enough], ends[enough] - 1

    return _cut(texts, shortest, bounds)


def _cut(
    texts: Sequence[str], key_words: int, bounds: Callable[[_HashedWords], _Bounds]
) -> Patterns:
    """Cut patterns from the texts. `bounds` gives their first and last words."""
    parts = []
    seen = 0
    for begin in range(0, max(1, len(texts)), _TEXTS_AT_A_TIME):
        batch = map(without_surrogates, texts[begin : begin + _TEXTS_AT_A_TIME])
        words = _HashedWords(_fold(DOCUMENT_BREAK.join(batch)))
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


class _Finder:
    """The first document found so far for each of some patterns."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns = patterns
        self.first = np.full(len(patterns.hashes), NOT_FOUND)
        """Document of each pattern, or NOT_FOUND. Shape (N,)."""
        # Per hash, at its first pattern: whether all patterns with this hash are found.
        self._all_found = np.zeros(len(patterns.hashes), bool)
        self._filter = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[patterns.hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def scan(self, words: _HashedWords, document: int, text_ends: bool) -> None:
        """Find patterns in `words`, whose first word is in `document`.

        `text_ends`: whether the last word is complete, because no more text follows.
        """
        hashes = words.hashes(self.patterns.key_words)
        maybe = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        places = np.searchsorted(self.patterns.hashes, hashes[maybe])
        places = np.minimum(places, len(self._all_found) - 1)
        hit = (self.patterns.hashes[places] == hashes[maybe]) & ~self._all_found[places]
        for start, place in zip(words.starts[maybe[hit]], places[hit], strict=True):
            here = document + int(np.searchsorted(words.breaks, start))
            self._compare(words.codes, int(start), int(place), here, text_ends)

    def _compare(
        self, codes: np.ndarray, start: int, place: int, document: int, text_ends: bool
    ) -> None:
        """Compare all patterns of one hash, the first at `place`, with the text at `start`."""
        patterns = self.patterns
        run_end = np.searchsorted(patterns.hashes, patterns.hashes[place], side="right")
        run = np.arange(place, run_end)
        for i in run[self.first[run] == NOT_FOUND]:
            pattern = patterns.codes[patterns.starts[i] : patterns.ends[i]]
            end = start + len(pattern)
            complete = codes[end] <= _BREAK if end < len(codes) else text_ends
            if complete and np.array_equal(codes[start:end], pattern):
                self.first[i] = document
        self._all_found[place] = (self.first[run] != NOT_FOUND).all()


class Search:
    """Searches a stream of documents, given in pieces, for several kinds of patterns.

    Of the last piece it keeps as many words as the longest pattern has, so that a pattern is found
    that begins in one piece and ends in the next.
    """

    def __init__(self, kinds: Sequence[Patterns], first_document: int = 0) -> None:
        self.finders = [_Finder(patterns) for patterns in kinds]
        self._longest = max((patterns.longest for patterns in kinds), default=1)
        self._document = first_document - 1  # the first break of the stream adds 1
        self._tail = np.zeros(0, np.uint32)

    def feed(self, text: str, last: bool = False) -> None:
        """Search the next piece of the stream, with a DOCUMENT_BREAK before every document.

        A piece may end between any two characters. `last`: no more text follows.
        """
        words = _HashedWords(np.concatenate([self._tail, _fold(text)]))
        for finder in self.finders:
            if len(finder.first):
                finder.scan(words, self._document, last)
        kept_from = len(words.codes)
        if len(words.starts):
            kept_from = int(words.starts[max(0, len(words.starts) - self._longest)])
        self._document += int(np.searchsorted(words.breaks, kept_from))
        self._tail = words.codes[kept_from:]
