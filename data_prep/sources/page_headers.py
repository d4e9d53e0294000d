"""Looks for damage in the headers of parquet pages, which no checksum covers.

The checksum of a page is of its data. Its header also has the least and the greatest value of the
page, and these must be between those of the row group, which are in the footer.
"""

from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as parquet

_HEADER_BYTES = 1 << 13  # what is read for one header; a longer one is not checked
_LONGEST_VALUE = 60  # bytes; writers shorten longer ones, so that they no longer compare
# Field numbers. Source: https://github.com/apache/parquet-format (parquet.thrift)
_SIZE, _CHECKSUM, _DATA_PAGE, _DATA_PAGE_V2 = 3, 4, 5, 8
_STATISTICS, _STATISTICS_V2 = 5, 8
_GREATEST, _LEAST = 5, 6


def damaged_header(path: Path, column: parquet.ColumnChunkMetaData) -> str:
    """What is wrong with a header of the pages of one column and row group; "" if nothing is.

    Only pages with checksums are looked at, as only their writers mean to be checked.
    """
    bounds = _bounds_of(column)
    if bounds is None:
        return ""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    with path.open("rb") as file:
        while start < end:
            found = _read_header(file, start)
            if found is None or _CHECKSUM not in found[0]:
                return ""
            header, length = found
            size = header.get(_SIZE)
            if not isinstance(size, int) or size < 0:
                return f"the header of its page at byte {start} has no size"
            if not _fits(header, bounds):
                return f"the header of its page at byte {start} does not fit the file's footer"
            start += length + size
    return ""


def _bounds_of(column: parquet.ColumnChunkMetaData) -> tuple[bytes, bytes] | None:
    """The least and the greatest value of a column of bytes or text; None if they are not known."""
    if column.physical_type != "BYTE_ARRAY":  # of another type, pyarrow may abort the process
        return None
    found = column.statistics
    if found is None or not found.has_min_max:
        return None
    least, greatest = found.min_raw, found.max_raw
    if not isinstance(least, bytes) or not isinstance(greatest, bytes):
        return None
    return None if max(len(least), len(greatest)) > _LONGEST_VALUE else (least, greatest)


def _fits(header: dict[int, Any], bounds: tuple[bytes, bytes]) -> bool:
    page = _inner(_inner(header, _DATA_PAGE), _STATISTICS)
    page = page or _inner(_inner(header, _DATA_PAGE_V2), _STATISTICS_V2)
    least, greatest = page.get(_LEAST, bounds[0]), page.get(_GREATEST, bounds[1])
    if not isinstance(least, bytes) or not isinstance(greatest, bytes):
        return False
    if max(len(least), len(greatest)) > _LONGEST_VALUE:
        return True
    # Where a page has an empty text, Arrow's writer may take it for none and keep a bound of the
    # page before, in the page and in the footer.
    if not least or not greatest:
        return True
    return bounds[0] <= least <= greatest <= bounds[1]


def _inner(struct: dict[int, Any], number: int) -> dict[int, Any]:
    found = struct.get(number)
    return found if isinstance(found, dict) else {}


def _read_header(file: BinaryIO, start: int) -> tuple[dict[int, Any], int] | None:
    """The fields of a page's header and its length; None if it cannot be read."""
    file.seek(start)
    reader = _Compact(file.read(_HEADER_BYTES))
    try:
        return reader.struct(), reader.at
    except (IndexError, ValueError, RecursionError):
        return None


class _Compact:
    """Reads Thrift's compact protocol.

    Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data

    def struct(self) -> dict[int, Any]:
        """The fields of a struct by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind == 9:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"kind {kind} is in no header of a page")

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _bytes(self, count: int) -> bytes:
        if self.at + count > len(self._data):
            raise IndexError(count)
        self.at += count
        return self._data[self.at - count : self.at]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _integer(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
