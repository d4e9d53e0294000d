"""What every file format gives: pieces of whole documents to plan with, and their texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_prep.sources.byte_streams import Content
from data_prep.sources.records import BadRecord

TextOrBad = bytes | BadRecord | None


@dataclass(frozen=True)
class Piece:
    """A range of a file that holds whole documents, with its size."""

    start: int
    stop: int
    rows: int
    text_bytes: int


class FileFormat(Protocol):
    """Cuts and reads one kind of file."""

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """The pieces of a file, in order. All but the last have at least `piece_bytes` of text.

        Raises: ValueError if nothing of the file can be used.
        """
        ...

    def texts(self, content: Content, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts in a range of pieces as UTF-8, one for each row; None is an empty document."""
        ...


def grouped(bounds: Iterator[tuple[int, int]], piece_bytes: int) -> Iterator[Piece]:
    """Pieces of consecutive documents, given where each document begins and ends."""
    first = last = rows = 0
    for start, stop in bounds:
        first = start if rows == 0 else first
        last, rows = stop, rows + 1
        if last - first >= piece_bytes:
            yield Piece(first, last, rows, last - first)
            rows = 0
    if rows:
        yield Piece(first, last, rows, last - first)
