"""Encodes documents to token ids, with the reference or with something faster.

tiktoken is the reference, or Hugging Face's `tokenizers` where a tokenizer.json defines the ids.
Faster are gigatoken than tiktoken, more than ten times, and tiktoken than `tokenizers`. A sample of
what the faster one encodes is encoded by the reference too, and after the first difference it is no
longer used (unit.py). Documents with characters that the two take for different things, as each was
built with its version of Unicode, go to the reference. All are compared before the first document
outside ASCII.
"""

import tempfile
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data_prep.preparation.letter_classes import (
    ASCII,
    CharacterFinder,
    class_probe,
    classed_differently,
    differing,
    differing_outside_ascii,
)
from data_prep.tokenizer import Tokenizer
from storage.byte_pairs import END_OF_TEXT, PATTERNS
from storage.vocabularies.library import LIBRARY, has_whole_words

try:
    import gigatoken
except ImportError:
    gigatoken = None

EncoderChoice = Literal["auto", "tiktoken"]
CHECKED_FIRST = 8  # documents at the start of every unit are encoded by both
CHECKED_SHARE = 256  # and one in this many of the others
_MOST_COMPARED = 1 << 20  # bytes of a text; `tokenizers` needs 120 bytes of memory for each
_MOST_DIFFERING = 20_000  # characters; Unicode 17 has 4,803 more than Unicode 16
# Documents with either of these go to tiktoken. gigatoken would encode a special token in a text as
# one id if it had one. Ours has none, and this makes sure. NUL ends a string in C.
_SPECIAL = END_OF_TEXT.encode()
_NUL = b"\0"

# What gigatoken calls the patterns whose words depend on letters, digits and spaces alone.
_SCHEMES = {PATTERNS[name]: name for name in ("gpt2", "gpt4", "qwen2")}

_Place = tuple[int, int]
"""File and row of a document in its source."""


class EncoderMismatch(Exception):
    """The fast encoder gave other ids than the reference, or failed."""

    def __init__(self, name: str, place: _Place | None, what: str) -> None:
        super().__init__(name, place, what)
        self.name = name
        self.place = place
        self.what = what


class _FastEncoder(Protocol):
    """A faster implementation of the same tokenizer."""

    name: str

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of a text in UTF-8, (tokens,)."""
        ...

    def may_differ(self, text: bytes) -> bool:
        """Whether the text has something that the reference is known to take otherwise."""
        ...


class Gigatoken:
    """gigatoken, on the calling thread; it caches the words that it has encoded.

    Source: https://github.com/marcelroed/gigatoken
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises: any exception, if gigatoken cannot use the ranks."""
        assert gigatoken is not None
        self.name = "gigatoken"
        # `from_tiktoken` takes the path of a file.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            path.write_bytes(tokenizer.ranks)
            scheme = _SCHEMES[tokenizer.pattern]
            self._backend = gigatoken.Tokenizer.from_tiktoken(path, scheme, {}).backend
        self._pattern = tokenizer.pattern

    def encode(self, text: bytes) -> np.ndarray:
        """See _FastEncoder."""
        # One text per call: a batch is returned as an `awkward` array, whose import takes 0.4 s.
        return self._backend.encode(text)

    def may_differ(self, text: bytes) -> bool:
        """See _FastEncoder. Raises: EncoderMismatch if too many characters differ."""
        return not text.isascii() and _gigatoken_differs(self._pattern).is_in(text)


@cache
def _gigatoken_differs(pattern: str) -> CharacterFinder:
    """Finds the characters outside ASCII that gigatoken and tiktoken take for something else.

    It takes a second, once in a process.
    """
    reference = class_probe(pattern)
    fast = Gigatoken(reference)
    found = differing_outside_ascii(
        reference.encode_to_numpy, lambda text: fast.encode(text.encode())
    )
    if len(found) > _MOST_DIFFERING:
        what = f"it takes {len(found):,} characters for something else, such as U+{found[0]:04X}"
        raise EncoderMismatch(fast.name, None, what)
    return CharacterFinder(found)


def _agrees_on_ascii(pattern: str) -> bool:
    reference = class_probe(pattern)
    fast = Gigatoken(reference)
    encode = reference.encode_to_numpy
    return not differing(encode, lambda text: fast.encode(text.encode()), ASCII)


class _RanksOfJson:
    """tiktoken, or gigatoken, with the ranks of a tokenizer.json, where its pattern is known."""

    def __init__(self, tokenizer: Tokenizer, faster: Gigatoken | None) -> None:
        self._tokenizer = tokenizer
        self._faster = faster
        self.name = faster.name if faster else "tiktoken"
        self._words = [word.encode() for word in tokenizer.words]

    @cached_property
    def _differs(self) -> CharacterFinder:
        return CharacterFinder(classed_differently(self._tokenizer.pattern))

    def encode(self, text: bytes) -> np.ndarray:
        """See _FastEncoder."""
        if self._faster is not None:
            return self._faster.encode(text)
        written = text.decode()
        try:
            return self._tokenizer.encode_by_ranks(written)
        except ValueError:  # a million spaces
            return self._tokenizer.encode_to_numpy(written)

    def may_differ(self, text: bytes) -> bool:
        """See _FastEncoder."""
        if any(word in text for word in self._words) or self._differs.is_in(text):
            return True
        return self._faster is not None and self._faster.may_differ(text)


@cache
def fast_encoder(tokenizer: Tokenizer) -> _FastEncoder | None:
    """A faster encoder for this tokenizer; None if there is none."""
    if tokenizer.reference != LIBRARY:
        return _with_gigatoken(tokenizer)
    plain = tokenizer.pattern and not classed_differently(tokenizer.pattern, ASCII)
    return _RanksOfJson(tokenizer, _with_gigatoken(tokenizer)) if plain else None


def _with_gigatoken(tokenizer: Tokenizer) -> Gigatoken | None:
    if gigatoken is None or tokenizer.pattern not in _SCHEMES:
        return None
    # It panics, and says so, for tokens that are looked up whole, as Llama 3 has some.
    if tokenizer.additions and has_whole_words(tokenizer.additions.tokenizer_json):
        return None
    try:
        return Gigatoken(tokenizer) if _agrees_on_ascii(tokenizer.pattern) else None
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # a panic in Rust code, for ranks that no merging could have given
        return None


class Encoder:
    """Encodes the documents of one unit, in batches.

    With a fast encoder, some documents are encoded by both and compared: the first one of every
    file, the first CHECKED_FIRST of the unit, and one in CHECKED_SHARE of the rest. The choice is
    the same in every run.
    """

    def __init__(self, tokenizer: Tokenizer, fast: _FastEncoder | None = None) -> None:
        self.tokenizer = tokenizer
        self._fast = fast
        self._checks_left = CHECKED_FIRST

    @property
    def name(self) -> str:
        """The name of the encoder in use."""
        return self._fast.name if self._fast else self.tokenizer.reference

    def encode(
        self, texts: Sequence[bytes], places: Sequence[_Place]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all documents, each opened by end-of-text, and the length of each.

        Shapes: texts and places (documents,) -> (tokens,), uint32 (documents,).
        Raises: EncoderMismatch; ValueError for a text that the reference cannot encode.
        """
        fast = self._fast
        if fast is None:
            rows = [self._row(*pair) for pair in zip(texts, places, strict=True)]
        else:
            rows = [self._checked(fast, *pair) for pair in zip(texts, places, strict=True)]
        lengths = np.array([len(row) + 1 for row in rows], np.uint32)
        tokens = np.empty(int(lengths.sum(dtype=np.int64)), self.tokenizer.token_dtype)
        at = 0
        for row in rows:
            tokens[at] = self.tokenizer.end_of_text
            at += 1 + len(row)
            tokens[at - len(row) : at] = row
        return tokens, lengths

    def check_bytes(self, counts: np.ndarray, text_bytes: int) -> None:
        """Check that the ids, with these counts, decode to as many bytes as the texts had.

        Raises: EncoderMismatch.
        """
        found = int(counts @ self.tokenizer.token_bytes().astype(np.int64))
        if found != text_bytes:
            raise EncoderMismatch(
                self.name, None, f"the ids of {text_bytes} bytes of text decode to {found} bytes"
            )

    def _row(self, text: bytes, place: _Place) -> np.ndarray:
        try:
            return self.tokenizer.encode_to_numpy(text.decode())
        except ValueError as error:  # tiktoken's regular expression fails on a million spaces
            file, row = place
            raise ValueError(
                f"{self.tokenizer.reference} cannot encode row {row} of the source's file {file} "
                f"(both counted from 0): {error}; shorten the text's runs of whitespace, or drop it"
            ) from error

    def _checked(self, fast: _FastEncoder, text: bytes, place: _Place) -> np.ndarray:
        """The ids of `fast`, compared with the reference's if sampled, which gets special texts."""
        if _NUL in text or (b"|" in text and _SPECIAL in text) or fast.may_differ(text):
            return self._row(text, place)
        row = self._fast_row(fast, text, place)
        if self._checks_left or place[1] == 0 or is_sampled(place):
            self._checks_left = max(0, self._checks_left - 1)
            part = self._compared_part(text)
            found = row if part is text else self._fast_row(fast, part, place)
            self._compare(fast, place, found, self._row(part, place))
        return row

    def _compared_part(self, text: bytes) -> bytes:
        """What of a text is encoded by both: its beginning, if the reference needs much memory."""
        if self.tokenizer.reference != LIBRARY or len(text) <= _MOST_COMPARED:
            return text
        return text[:_MOST_COMPARED].decode(errors="ignore").encode()

    def _fast_row(self, fast: _FastEncoder, text: bytes, place: _Place) -> np.ndarray:
        try:
            row = fast.encode(text)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic in Rust code is a BaseException, not an Exception
            raise EncoderMismatch(fast.name, place, f"it failed ({error!r:.200})") from error
        largest, end = int(row.max(initial=0)), self.tokenizer.end_of_text
        if largest >= self.tokenizer.n_vocab or (largest >= end and (row == end).any()):
            raise EncoderMismatch(fast.name, place, f"it gave the id {largest}, which no text has")
        return row

    def _compare(
        self, fast: _FastEncoder, place: _Place, found: np.ndarray, expected: np.ndarray
    ) -> None:
        if np.array_equal(found, expected):
            return
        length = min(len(found), len(expected))
        differs = np.flatnonzero(found[:length] != expected[:length])
        at = int(differs[0]) if len(differs) else length
        raise EncoderMismatch(
            fast.name,
            place,
            f"from token {at} on it gives {found[at : at + 4].tolist()} "
            f"and {self.tokenizer.reference} {expected[at : at + 4].tolist()}",
        )


def is_sampled(place: _Place) -> bool:
    """Whether a document is in the sample that both encoders encode; the same in every run."""
    # Two multipliers of splitmix64 as a cheap hash of file and row.
    mixed = (place[0] * 0x9E3779B97F4A7C15 + place[1] * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (mixed ^ mixed >> 29) >> 32 & (CHECKED_SHARE - 1) == 0
