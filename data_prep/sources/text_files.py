"""Text files: separators divide them into documents."""

import logging
from collections.abc import Iterator
from pathlib import Path

from data_prep.sources.byte_streams import Content, TruncatedFile
from data_prep.sources.pieces import Piece, TextOrBad, grouped
from data_prep.sources.records import BadRecord
from data_prep.sources.splitting import Separator, split_content
from data_prep.sources.text_encodings import BYTE_ORDER_MARK, check_encoding, not_utf8, read_head

log = logging.getLogger(__name__)


class SeparatedTextFormat:
    """A .txt file: separators divide it into documents; without one, the file is one document."""

    def __init__(self, text_key: str, separator: str, template: str | None = None) -> None:
        if template is not None:
            raise ValueError(
                f"template={template} joins the fields of records, and text files have none; "
                "leave out --template, or name JSON-lines or parquet files only"
            )
        self.separator = Separator(separator.encode(), any_newline=True)

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a separator."""
        check_encoding(path, read_head(path))
        return grouped(self._bounds(path), piece_bytes)

    def _bounds(self, path: Path) -> Iterator[tuple[int, int]]:
        start = nuls = 0
        try:
            for part, closed in split_content(Content(path), self.separator):
                stop = start + len(part) + closed
                nuls += part.count(0)
                if closed or not _is_blank_end(part, start):
                    yield start, stop
                start = stop
        except TruncatedFile as error:
            yield start, start + error.rest + 1  # so that reading it meets the end, too
        if nuls:
            log.warning("%s holds %d NUL bytes, which text rarely has; they are kept", path, nuls)

    def texts(self, content: Content, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts between separators; a newline right before or after a separator is no text."""
        position, row = start, first_row
        try:
            for part, closed in split_content(content, self.separator, start, stop):
                if closed or not _is_blank_end(part, position):
                    head, text = _trimmed(part, position > 0, before_separator=closed > 0)
                    yield _bad_utf8(text, content.path, position + head, row) or text
                    row += 1
                position += len(part) + closed
        except TruncatedFile as error:
            yield BadRecord.truncated(content.path, row, f"document {row + 1}", position, error)


def _is_blank_end(part: bytes, start: int) -> bool:
    """Whether `part`, the end of a file, holds only the newline of the last separator."""
    return part in (b"", b"\n", b"\r\n") if start else not part


def _trimmed(part: bytes, after_separator: bool, before_separator: bool) -> tuple[int, bytes]:
    """How many bytes were cut in front, and the document without its separators' newlines."""
    head = 0
    if after_separator and part.startswith((b"\n", b"\r\n")):
        head = part.index(b"\n") + 1
    elif not after_separator and part.startswith(BYTE_ORDER_MARK):
        head = len(BYTE_ORDER_MARK)
    text = part[head:]
    if before_separator and text.endswith(b"\n"):
        text = text.removesuffix(b"\n").removesuffix(b"\r")
    return head, text


def _bad_utf8(text: bytes, path: Path, offset: int, row: int) -> BadRecord | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        place = f"document {row + 1} (byte {offset + error.start})"
        return BadRecord(str(path), row, place, not_utf8(text, error.start, path))
    return None
