"""The records of a source: documents, and records that cannot be used."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """One text (UTF-8), the number of its file in the source, and its row there."""

    file: int
    row: int
    text: bytes


class BadRecord(ValueError):
    """One record that cannot be used. A reader yields it in place of a text and continues.

    Its sentence names the file, the place of the record there, and what to do.
    """

    def __init__(self, path: str, row: int, place: str, reason: str, file: int = 0) -> None:
        super().__init__(path, row, place, reason, file)
        self.path = path
        self.row = row  # from 0, as in Document
        self.place = place  # such as "line 3 (byte 120)"
        self.reason = reason  # what is wrong, and the cure
        self.file = file  # the number of the file in the source

    @staticmethod
    def truncated(path: Path, row: int, record: str, start: int, error: Exception) -> "BadRecord":
        """The record, from byte `start` on, that a compressed file ends in, and all behind it."""
        reason = str(error).replace(f"{path} ", "the file ", 1)
        return BadRecord(str(path), row, f"{record} (byte {start}) and what follows", reason)

    def __str__(self) -> str:
        return f"{self.path}, {self.place}: {self.reason}"


def only_documents(records: Iterable[Document | BadRecord]) -> Iterator[Document]:
    """The documents among `records`. Raises: the first BadRecord."""
    for record in records:
        if isinstance(record, BadRecord):
            raise record
        yield record
