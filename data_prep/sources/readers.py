"""Readers of .txt, .jsonl and .parquet files: cut a file into pieces, read its texts.

A piece consists of whole documents. Positions are decompressed bytes in text and JSON-lines files,
and row groups in parquet files.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow
import pyarrow.parquet as parquet

from data_prep.sources.pieces import FileFormat, Piece, TextOrBad, grouped
from data_prep.sources.records import BadRecord
from data_prep.tokenizer import utf8

_CHUNK_BYTES = 1 << 20
_ROWS_PER_BATCH = 1000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some Windows programs put it at the start of a UTF-8 file
# A compressed file is decompressed from its start to reach a piece: that is 20 to 100 times
# faster than tokenizing.
_COMPRESSIONS = (".gz", ".zst")


class _SeparatedTextFormat:
    """A .txt file: separators divide it into documents; without one, the file is one document."""

    def __init__(self, text_key: str, separator: str) -> None:
        self.separator = separator.encode()
        if not self.separator:
            raise ValueError("separator is empty; give the text between documents")

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a separator."""
        return grouped(self._bounds(path), piece_bytes)

    def _bounds(self, path: Path) -> Iterator[tuple[int, int]]:
        start = 0
        for part, closed in split_file(path, self.separator):
            stop = start + len(part) + (len(self.separator) if closed else 0)
            if closed or not _is_blank_end(part, start):
                yield start, stop
            start = stop

    def texts(self, path: Path, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts between separators; a newline right before or after a separator is no text."""
        position, row = start, first_row
        for part, closed in split_file(path, self.separator, start, stop):
            if closed or not _is_blank_end(part, position):
                head, text = _trimmed(part, after_separator=position > 0, before_separator=closed)
                yield _bad_utf8(text, path, position + head, row) or text
                row += 1
            position += len(part) + len(self.separator)


def _is_blank_end(part: bytes, start: int) -> bool:
    """Whether `part`, the end of a file, holds only the newline of the last separator."""
    return part in (b"", b"\n", b"\r\n") if start else not part


def _trimmed(part: bytes, after_separator: bool, before_separator: bool) -> tuple[int, bytes]:
    """How many bytes were cut in front, and the document without its separators' newlines."""
    head = 0
    if after_separator and part.startswith((b"\n", b"\r\n")):
        head = part.index(b"\n") + 1
    elif not after_separator and part.startswith(_BYTE_ORDER_MARK):
        head = len(_BYTE_ORDER_MARK)
    text = part[head:]
    if before_separator and text.endswith(b"\n"):
        text = text.removesuffix(b"\n").removesuffix(b"\r")
    return head, text


def _bad_utf8(text: bytes, path: Path, offset: int, row: int) -> BadRecord | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return BadRecord(
            str(path),
            row,
            f"document {row + 1} (byte {offset + error.start})",
            "it is not UTF-8; convert the file first, for example with `iconv -f latin1 -t utf-8`",
        )
    return None


class _JsonLinesFormat:
    """A .jsonl file: one JSON object per line, with the text under `text_key`."""

    def __init__(self, text_key: str, separator: str) -> None:
        self.text_key = text_key

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a line; sizes are those of the lines, including their keys."""
        return grouped(self._bounds(path), piece_bytes)

    def _bounds(self, path: Path) -> Iterator[tuple[int, int]]:
        start = 0
        for line, closed in split_file(path, b"\n"):
            stop = start + len(line) + closed
            if closed or line:
                yield start, stop
            start = stop

    def texts(self, path: Path, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts of the lines; a blank line or a null is an empty document."""
        offset, row = start, first_row
        for line, closed in split_file(path, b"\n", start, stop):
            if closed or line:
                found = self._text(line) if line.strip() else None
                if isinstance(found, str):
                    found = BadRecord(str(path), row, f"line {row + 1} (byte {offset})", found)
                yield found
            offset, row = offset + len(line) + 1, row + 1

    def _text(self, line: bytes) -> bytes | str | None:
        """The text of a line, or a sentence that says why it has none."""
        try:
            row = json.loads(line)
        except RecursionError:
            return "it is JSON nested too deep; drop the line, or the deep value"
        except ValueError as error:
            return f"it is not UTF-8 JSON ({error}); repair or drop it"
        if not isinstance(row, dict) or self.text_key not in row:
            keys = sorted(row) if isinstance(row, dict) else type(row).__name__
            return f"it has no key {self.text_key!r} (it has {keys}); name it with --text-key"
        value = row[self.text_key]
        if value is None or isinstance(value, str):
            return None if value is None else utf8(value)
        return (
            f"it holds {type(value).__name__} under {self.text_key!r}, which must be text; "
            "name the key of the text with --text-key"
        )


class ParquetFormat:
    """A .parquet file, with the text in the column `text_key`."""

    def __init__(self, text_key: str, separator: str) -> None:
        self.text_key = text_key

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a row group; the size is that of the text column, uncompressed."""
        with self._open(path) as file:
            leaves = [file.schema.column(index).path for index in range(len(file.schema))]
            leaf = leaves.index(self.text_key)
            start = rows = size = 0
            for group in range(file.metadata.num_row_groups):
                metadata = file.metadata.row_group(group)
                rows += metadata.num_rows
                size += metadata.column(leaf).total_uncompressed_size
                if size >= piece_bytes:
                    yield Piece(start, group + 1, rows, size)
                    start, rows, size = group + 1, 0, 0
            if rows:
                yield Piece(start, file.metadata.num_row_groups, rows, size)

    def texts(self, path: Path, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts of the rows; a null is an empty document."""
        with self._open(path) as file:
            groups = list(range(start, stop))
            batches = file.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=[self.text_key])
            try:
                for batch in batches:
                    yield from _utf8_column(batch.column(0))
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path} cannot be read in row groups {start} to {stop - 1} ({error}); "
                    "copy or download it again"
                ) from error

    def _open(self, path: Path) -> parquet.ParquetFile:
        try:
            # Without a buffer size, pyarrow keeps a compressed column of a row group in memory.
            file = parquet.ParquetFile(path, buffer_size=_CHUNK_BYTES, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} is not a readable parquet file ({error}); copy or download it again"
            ) from error
        names = file.schema_arrow.names
        if self.text_key not in names:
            raise ValueError(
                f"{path} has no column {self.text_key!r} (it has {names}); name it with --text-key"
            )
        kind = file.schema_arrow.field(self.text_key).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise ValueError(
                f"{path} has {kind} in column {self.text_key!r}, which must be text; "
                "name the column of the text with --text-key"
            )
        return file


def _utf8_column(column: pyarrow.Array) -> list[bytes | None]:
    """The texts as bytes, not via Python strings. Raises: pyarrow.ArrowInvalid if not UTF-8."""
    column.validate(full=True)
    large = pyarrow.types.is_large_string(column.type)
    return column.cast(pyarrow.large_binary() if large else pyarrow.binary()).to_pylist()


FORMATS: dict[str, Callable[[str, str], FileFormat]] = {  # of text key and separator
    ".txt": _SeparatedTextFormat,
    ".jsonl": _JsonLinesFormat,
    ".parquet": ParquetFormat,
}


def format_of(name: str) -> str:
    """The key in FORMATS for a file name; "" if its kind is not known."""
    path = Path(name)
    if path.suffix in _COMPRESSIONS:
        path = path.with_suffix("")
        return path.suffix if path.suffix in (".txt", ".jsonl") else ""
    return path.suffix if path.suffix in FORMATS else ""


def _open_bytes(path: Path, start: int = 0) -> BinaryIO | pyarrow.NativeFile:
    """A file opened at byte `start` of its content, decompressed if its suffix says so."""
    if path.suffix not in _COMPRESSIONS:
        plain = path.open("rb")
        plain.seek(start)
        return plain
    file = pyarrow.input_stream(path, compression="detect", buffer_size=_CHUNK_BYTES)
    remaining = start
    while remaining:
        chunk = _read(file, path, min(_CHUNK_BYTES, remaining))
        if not chunk:
            raise _became_shorter(path)
        remaining -= len(chunk)
    return file


def _became_shorter(path: Path) -> ValueError:
    return ValueError(
        f"{path} is shorter than when it was planned; it must not change while it is prepared: "
        "start again"
    )


def split_file(
    path: Path, separator: bytes, start: int = 0, stop: int | None = None
) -> Iterator[tuple[bytes, bool]]:
    """The parts of bytes [start, stop) between separators; True if a separator follows the part."""
    buffer = bytearray()
    searched = 0  # bytes of the buffer where no separator begins; a chunk may end inside one
    left = None if stop is None else stop - start
    with _open_bytes(path, start) as file:
        while chunk := _read(file, path, _CHUNK_BYTES if left is None else min(_CHUNK_BYTES, left)):
            left = None if left is None else left - len(chunk)
            buffer += chunk
            while (at := buffer.find(separator, searched)) >= 0:
                yield bytes(buffer[:at]), True
                del buffer[: at + len(separator)]
                searched = 0
            searched = max(0, len(buffer) - len(separator) + 1)
    if left:
        raise _became_shorter(path)
    yield bytes(buffer), False


def _read(file: BinaryIO | pyarrow.NativeFile, path: Path, count: int) -> bytes:
    try:
        return file.read(count)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy or make it again") from error
