"""A source of documents made of files, and its division into units.

A unit is a contiguous part of the source with about one shard's text; each unit becomes one shard.
The units follow from the files alone, so the shards do not depend on the number of workers.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from data_prep.dataset.manifest import SourceEntry, SourceFile
from data_prep.sources.byte_streams import Content
from data_prep.sources.file_digests import DigestFolder, digests_of
from data_prep.sources.file_search import find_files
from data_prep.sources.formats import FORMATS, format_of
from data_prep.sources.pieces import FileFormat, Piece
from data_prep.sources.records import BadRecord, Document, only_documents

_PIECES_PER_UNIT = 16  # units are filled piece by piece, so this bounds how much too large they get


@dataclass(frozen=True)
class Span:
    """A range of one file; start and stop are in the units of its format (bytes or row groups)."""

    file: int
    start: int
    stop: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class Unit:
    """A part of the source: its spans, the number of documents before it, and its size."""

    spans: tuple[Span, ...]
    first_document: int
    documents: int
    text_bytes: int
    """Estimated bytes of text."""
    tokens: int = 0
    """Estimated tokens, with the end-of-text of each document."""
    key: str = ""
    """Names what the unit becomes: the same for the same content, settings and split."""


class DocumentSource(Protocol):
    """What a preparation needs of its source. It is pickled once for every worker."""

    def identity(self) -> SourceEntry:
        """What the source is, for the manifest."""
        ...

    def settings(self) -> dict[str, Any]:
        """The options of reading that change the documents, for the manifest."""
        ...

    def pieces(self, number: int, piece_bytes: int) -> Iterator[Piece]:
        """A file in order, cut into pieces of at least `piece_bytes`, as its format measures."""
        ...

    def is_readable(self, number: int) -> bool:
        """Whether a file can be read now, and not only its `pieces`."""
        ...

    def records(self, unit: Unit) -> Iterator[Document | BadRecord]:
        """The documents of a unit, in order, empty ones included, or why one cannot be used."""
        ...

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The same, for callers that use no bad record. Raises: BadRecord."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Files below `root` (parquet, JSON lines, text), sorted by name."""

    id: str
    revision: str
    root: Path
    files: tuple[SourceFile, ...]
    text_key: str = "text"
    separator: str = "<|endoftext|>"
    template: str | None = None
    """Joins several fields to the text of a record, in place of `text_key`."""
    skip_blank: bool = False
    """Treat a text of whitespace only as an empty document."""
    validation: tuple[str, ...] = ()
    """Name patterns of the validation files, if the source defines them (for split=given)."""
    passed_over: int = 0
    """How many files, links and folders in the places of the source are not read."""
    unpacked: Path | None = None
    """A folder with the decompressed bytes of some spans, each under the number of its file."""
    shown: tuple[str, ...] = ()
    """How errors name the files, by number, if they are copies of others. Default: by path."""

    def identity(self) -> SourceEntry:
        """Names, sizes and sha256 of the files, without their location."""
        return SourceEntry(self.id, self.revision, self.files)

    def settings(self) -> dict[str, Any]:
        """Text key (or template) and separator; the others only where they are used."""
        text = {"text_key": self.text_key} if self.template is None else {"template": self.template}
        reading: dict[str, Any] = {**text, "separator": self.separator}
        if self.skip_blank:
            reading["skip_blank"] = True
        if self.validation:
            reading["validation"] = list(self.validation)
        return reading

    def plan(self, unit_bytes: int) -> list[Unit]:
        """Units of whole row groups, lines or separated texts; small files share a unit."""
        units: list[Unit] = []
        spans: list[Span] = []
        text_bytes = first = documents = 0
        for span, piece in self._pieces(max(1, unit_bytes // _PIECES_PER_UNIT)):
            append_span(spans, span)
            text_bytes += piece.text_bytes
            documents += piece.rows
            if text_bytes >= unit_bytes:
                units.append(Unit(tuple(spans), first, documents, text_bytes))
                first, spans, text_bytes, documents = first + documents, [], 0, 0
        if documents:
            units.append(Unit(tuple(spans), first, documents, text_bytes))
        return units

    def planning_path(self, file: SourceFile) -> Path:
        """The path to read when a file is cut into pieces; here the file itself."""
        return self.root / file.name

    def pieces(self, number: int, piece_bytes: int) -> Iterator[Piece]:
        """The pieces of a file, in order."""
        file = self.files[number]
        with self._errors_naming(number):
            yield from self._format(file).pieces(self.planning_path(file), piece_bytes)

    @contextmanager
    def _errors_naming(self, number: int) -> Iterator[None]:
        """Have an error name a file as it is shown."""
        try:
            yield
        except ValueError as error:
            if not self.shown:
                raise
            path = str(self.root / self.files[number].name)
            raise ValueError(str(error).replace(path, self.shown[number])) from error

    def is_readable(self, number: int) -> bool:
        """Always, since the files are local."""
        return True

    def _pieces(self, piece_bytes: int) -> Iterator[tuple[Span, Piece]]:
        for number in range(len(self.files)):
            row = 0
            for piece in self.pieces(number, piece_bytes):
                yield Span(number, piece.start, piece.stop, row, piece.rows), piece
                row += piece.rows

    def records(self, unit: Unit) -> Iterator[Document | BadRecord]:
        """The documents of a unit, in order, and a BadRecord in place of each bad one."""
        for span in unit.spans:
            texts = self._format(self.files[span.file]).texts(
                self._content(span), span.start, span.stop, span.first_row
            )
            with self._errors_naming(span.file):
                for row, text in enumerate(texts, start=span.first_row):
                    if isinstance(text, BadRecord):
                        text.file = span.file
                        text.path = self.shown[span.file] if self.shown else text.path
                        yield text
                        continue
                    blank = self.skip_blank and text is not None and not text.decode().strip()
                    yield Document(span.file, row, b"" if blank else text or b"")

    def _content(self, span: Span) -> Content:
        """The content of the file of a span, read where it is unpacked already."""
        path = self.root / self.files[span.file].name
        unpacked = self.unpacked / str(span.file) if self.unpacked else None
        if unpacked is not None and unpacked.is_file():
            return Content(path, unpacked, span.start)
        return Content(path)

    def documents(self, unit: Unit) -> Iterator[Document]:
        """The documents of a unit, in order. Raises: BadRecord."""
        return only_documents(self.records(unit))

    def _format(self, file: SourceFile) -> FileFormat:
        return FORMATS[format_of(file.name)](self.text_key, self.separator, self.template)


def append_span(spans: list[Span], span: Span) -> None:
    """Add a span, or extend the last one if it is of the same file."""
    if spans and spans[-1].file == span.file:
        last = spans.pop()
        span = replace(last, stop=span.stop, rows=last.rows + span.rows)
    spans.append(span)


def hashed_files(
    paths: Sequence[Path], kept: DigestFolder | None = None
) -> tuple[Path, tuple[SourceFile, ...]]:
    """The folder above all files, and their names below it, sizes and sha256."""
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return root, tuple(
        SourceFile(path.relative_to(root).as_posix(), path.stat().st_size, digest)
        for path, digest in zip(paths, digests_of(paths, kept), strict=True)
    )


def file_source(
    places: Iterable[str],
    text_key: str = "text",
    separator: str = "<|endoftext|>",
    kept: DigestFolder | None = None,
    template: str | None = None,
) -> FileSource:
    """A source of the files that `places` name (files, folders or globs).

    All files are hashed, but those whose digests are `kept`.

    Raises: ValueError if a place has no file of a known kind, or one that cannot be read.
    """
    found = find_files(places)
    found.log_names()
    root, files = hashed_files(found.paths, kept)
    passed_over = found.count_passed_over
    reading = (text_key, separator, template)
    return FileSource("files", "", root, files, *reading, passed_over=passed_over)


def first_documents(units: list[Unit], count: int) -> list[Unit]:
    """The units that hold the first `count` documents; the last one may be shortened."""
    kept = []
    for unit in units:
        remaining = count - unit.first_document
        if remaining <= 0:
            break
        if unit.documents > remaining:
            text_bytes = unit.text_bytes * remaining // unit.documents
            tokens = unit.tokens * remaining // unit.documents
            unit = replace(unit, documents=remaining, text_bytes=text_bytes, tokens=tokens)
        kept.append(unit)
    return kept
