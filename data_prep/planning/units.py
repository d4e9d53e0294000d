"""Cuts a source into units of about one shard each, so that files change few units.

A file with enough tokens for a unit has units of its own. Smaller files share one, and where such a
unit ends depends on the files near its end only. So after the repair of a file, or with a new file,
most units of other files are the same as before.
"""

import math
from collections.abc import Iterator, Sequence

from data_prep.planning.file_plan import FilePlan
from data_prep.sources.file_source import Span, Unit, append_span
from data_prep.sources.pieces import Piece

_PlacedPiece = tuple[int, Piece, int]
"""The number of its file, the piece, and its first row there."""

# All in shards. A file of its own is cut evenly, into units of at most _LARGEST_CUT.
_OWN_UNITS = 0.75
_LARGEST_CUT = 1.1
_MORE_PARTS = (1.25, 1.5, 1.75, 2.0)
# Small files are joined to a unit between these, at the file with the smallest digest.
_SMALLEST_GROUP, _LARGEST_GROUP = 0.8, 1.2


def cut(files: Sequence[FilePlan], digests: Sequence[str], shard_tokens: int) -> list[Unit]:
    """The units of a source; `digests` are the sha256 of its files, whose plans have rates."""
    tokens = [plan.size * (plan.tokens_per_size or 0.0) for plan in files]
    units: list[Unit] = []
    documents = 0
    for numbers in _neighbours(tokens, digests, shard_tokens):
        placed = [found for number in numbers for found in _placed(number, files[number])]
        shards = sum(tokens[number] for number in numbers) / shard_tokens
        for pieces in _even_parts(placed, shards) if len(numbers) == 1 else [placed]:
            unit = _unit(pieces, files, documents)
            units.append(unit)
            documents += unit.documents
    return units


def _neighbours(
    tokens: Sequence[float], digests: Sequence[str], shard_tokens: int
) -> Iterator[list[int]]:
    """The numbers of the files, in order: one large file, or small ones that share a unit."""
    small: list[int] = []
    for number, found in enumerate(tokens):
        if found <= _OWN_UNITS * shard_tokens:
            small.append(number)
        else:
            yield from _groups(small, tokens, digests, shard_tokens)
            yield [number]
            small = []
    yield from _groups(small, tokens, digests, shard_tokens)


def _groups(
    numbers: Sequence[int], tokens: Sequence[float], digests: Sequence[str], shard_tokens: int
) -> Iterator[list[int]]:
    """Small files in a row, divided into those of each unit."""
    first = 0
    while first < len(numbers):
        held, stop = 0.0, first
        ends: list[int] = []  # where the unit may end
        while stop < len(numbers):
            held += tokens[numbers[stop]]
            if held > _LARGEST_GROUP * shard_tokens and stop > first:
                break
            stop += 1
            if held >= _SMALLEST_GROUP * shard_tokens:
                ends.append(stop)
        if ends and stop < len(numbers):
            stop = min(ends, key=lambda end: digests[numbers[end - 1]])
        yield list(numbers[first:stop])
        first = stop


def _placed(number: int, plan: FilePlan) -> Iterator[_PlacedPiece]:
    row = 0
    for piece in plan.pieces:
        yield number, piece, row
        row += piece.rows


def _even_parts(pieces: list[_PlacedPiece], shards: float) -> list[list[_PlacedPiece]]:
    """The pieces of a file of `shards`, in parts of about the same size."""
    size = _size(pieces)
    fewest = max(1, math.ceil(shards / _LARGEST_CUT))
    parts = _cut_at(pieces, size, fewest)
    for more in _MORE_PARTS:  # of two large row groups a part may be too large
        if max(map(_size, parts), default=0) * shards <= _LARGEST_GROUP * size:
            break
        parts = _cut_at(pieces, size, math.ceil(more * fewest))
    return parts


def _size(pieces: list[_PlacedPiece]) -> int:
    return sum(piece.text_bytes for _, piece, _ in pieces)


def _cut_at(pieces: list[_PlacedPiece], size: int, count: int) -> list[list[_PlacedPiece]]:
    """At most `count` parts: a piece is in the part in which its middle is."""
    parts: list[list[_PlacedPiece]] = [[] for _ in range(count)]
    at = 0
    for placed in pieces:
        middle = at + placed[1].text_bytes / 2
        parts[min(count - 1, int(middle * count / max(1, size)))].append(placed)
        at += placed[1].text_bytes
    return [part for part in parts if part]


def _unit(pieces: list[_PlacedPiece], files: Sequence[FilePlan], first_document: int) -> Unit:
    spans: list[Span] = []
    tokens = text = 0.0
    for number, piece, row in pieces:
        append_span(spans, Span(number, piece.start, piece.stop, row, piece.rows))
        tokens += piece.text_bytes * (files[number].tokens_per_size or 0.0)
        text += piece.text_bytes * (files[number].text_per_size or 0.0)
    documents = sum(span.rows for span in spans)
    return Unit(tuple(spans), first_document, documents, round(text), round(tokens))
