"""Finds a text in the documents of a split, by decoding its tokens a million at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_prep.dataset.documents import Documents

_TOKENS_AT_ONCE = 1 << 20  # about 5 MB of text


@dataclass(frozen=True)
class _Hit:
    """One place where the text was found."""

    document: int
    first_token: int
    """The token in which it begins, counted from the document's end-of-text, which is 0."""
    before: str
    after: str
    """The text around it."""


def find_text(documents: Documents, wanted: bytes, around: int) -> Iterator[_Hit]:
    """All places of `wanted` (UTF-8) in file order; `around` is the bytes shown on either side.

    How the text was cut into tokens makes no difference. It is never found across two documents.
    """
    shards = documents.shards
    ends = np.cumsum(shards.lengths, dtype=np.int64)
    overlap = len(wanted)  # a token of a text has at least one byte
    for start in range(0, shards.tokens, _TOKENS_AT_ONCE):
        count = min(_TOKENS_AT_ONCE + overlap, shards.tokens - start)
        ids = shards.read(start, count)
        text, stops = documents.tokenizer.bytes_and_ends(ids)
        at = text.find(wanted)
        while at >= 0:
            first, last = np.searchsorted(stops, [at, at + len(wanted) - 1], side="right").tolist()
            if first >= _TOKENS_AT_ONCE:
                break  # the next piece has it again
            places = np.searchsorted(ends, [start + first, start + last], side="right").tolist()
            if places[0] == places[1]:
                begin = int(ends[places[0]] - shards.lengths[places[0]])
                inside = _document_part(text, stops, (begin, int(ends[places[0]])), start)
                before = text[max(inside[0], at - around) : at]
                after = text[at + len(wanted) : min(inside[1], at + len(wanted) + around)]
                yield _Hit(places[0], start + first - begin, *map(_readable, (before, after)))
            at = text.find(wanted, at + 1)


def _document_part(
    text: bytes, stops: np.ndarray, tokens: tuple[int, int], start: int
) -> tuple[int, int]:
    """Where the part of a document in this piece begins and ends in `text`."""
    first, last = tokens[0] - start, tokens[1] - start
    begin = 0 if first <= 0 else int(stops[first - 1])
    return begin, len(text) if last > len(stops) else int(stops[last - 1])


def _readable(text: bytes) -> str:
    """Text whose ends may lie inside a character."""
    return text.decode("utf-8", "ignore")
