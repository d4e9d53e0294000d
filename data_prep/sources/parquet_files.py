"""Parquet files, with the text in one column, or joined from several."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
from pyarrow import types

from data_prep.sources.byte_streams import Content
from data_prep.sources.page_headers import damaged_header
from data_prep.sources.pieces import Piece, TextOrBad
from data_prep.sources.records import BadRecord
from data_prep.sources.text_encodings import check_no_pointer
from data_prep.sources.text_fields import TextFields, text_fields

_BUFFER_BYTES = 1 << 20
_ROWS_PER_BATCH = 1000
_NAMES_SHOWN = 20
_AGAIN = "copy or download it again"
_DROP = "repair or drop the row"


class ParquetFormat:
    """A .parquet file: the column `text_key` or those of a template; `a.b` is b of the struct a."""

    def __init__(self, text_key: str, separator: str, template: str | None = None) -> None:
        self._fields = text_fields(text_key, template)

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a row group; the size is that of the text columns, uncompressed."""
        with _open(path) as file:
            leaves = [_leaf(file, column) for column in self._columns(file, path)]
            _check_rows(file, path)
            start = rows = size = 0
            for group in range(file.metadata.num_row_groups):
                metadata = file.metadata.row_group(group)
                rows += metadata.num_rows
                size += sum(metadata.column(leaf).total_uncompressed_size for leaf in leaves)
                if size >= piece_bytes:
                    yield Piece(start, group + 1, rows, size)
                    start, rows, size = group + 1, 0, 0
            if rows:
                yield Piece(start, file.metadata.num_row_groups, rows, size)

    def texts(self, content: Content, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts of the rows; a null is an empty document, in a template a bad record.

        If a page cannot be read, the rest of its row group cannot.
        """
        path, row = content.path, first_row
        with _open(path) as file:
            columns = self._columns(file, path)
            leaves = [_leaf(file, column) for column in columns]
            for group in range(start, stop):
                metadata = file.metadata.row_group(group)
                end = row + metadata.num_rows
                try:
                    damaged = (damaged_header(path, metadata.column(leaf)) for leaf in leaves)
                    damage = next(filter(None, damaged), "")
                    batches = file.iter_batches(
                        _ROWS_PER_BATCH,
                        row_groups=[group],
                        columns=[".".join(column) for column in columns],
                    )
                    for batch in batches if not damage else ():
                        values = [_values(batch, column) for column in columns]
                        yield from _texts(values, self._fields, path, row)
                        row += batch.num_rows
                    damage = damage or "it ends too early"
                except (pyarrow.ArrowException, OSError) as error:
                    damage = _one_line(error)
                reason = f"row group {group} cannot be read ({damage}); {_AGAIN}"
                yield from (_bad_row(path, number, reason) for number in range(row, end))
                row = end

    def _columns(self, file: parquet.ParquetFile, path: Path) -> list[list[str]]:
        """The names that lead to each column. Raises: ValueError as `text_column` does."""
        schema, option = file.schema_arrow, self._fields.option
        return [text_column(schema, name, str(path), option) for name in self._fields.names]


def _open(path: Path) -> parquet.ParquetFile:
    try:
        # Without a buffer size, pyarrow keeps a compressed column of a row group in memory.
        return parquet.ParquetFile(
            path, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
    except (pyarrow.ArrowException, OSError) as error:
        check_no_pointer(path, path.read_bytes() if path.stat().st_size < 1000 else b"")
        raise ValueError(
            f"{path} is not a readable parquet file ({_one_line(error)}); {_AGAIN}"
        ) from error


def _check_rows(file: parquet.ParquetFile, path: Path) -> None:
    """Raises: ValueError if the row groups do not have the rows that the file should have."""
    metadata = file.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or min(rows, default=0) < 0:
        raise ValueError(
            f"{path} should have {metadata.num_rows} rows, and its row groups have {sum(rows)}; "
            f"{_AGAIN}"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def text_column(schema: pyarrow.Schema, key: str, path: str, option: str) -> list[str]:
    """The names that lead to a column of text: one, or those of the structs around it too.

    `option` names it. Raises: ValueError if there is none, several, or one that holds no text.
    """
    for name in schema.names:
        same = schema.names.count(name)
        if same > 1 and (key == name or key.startswith(f"{name}.")):
            raise ValueError(
                f"{path} has {same} columns {name!r}, and one of them must be the text; "
                "write the file again with other names for the others"
            )
    fields = {name: schema.field(name) for name in schema.names}
    found = _nested_field(fields, key)
    if found is None:
        raise ValueError(
            f"{path} has no column {key!r} (it has {_shown(schema)}); name it with {option}"
        )
    names, kind = found
    if not _is_text(kind):
        cure = f"name one of text with {option} (it has {_shown(schema, of_text=True)})"
        if types.is_nested(kind) and not types.is_struct(kind):
            cure = "write the text as a column of its own, one text a row"
        raise ValueError(f"{path} has {kind} in column {key!r}, which must be text; {cure}")
    return names


def _leaf(file: parquet.ParquetFile, column: list[str]) -> int:
    """The number of a column among those of the file without structs."""
    leaves = [file.schema.column(index).path for index in range(len(file.schema))]
    return leaves.index(".".join(column))


def _nested_field(
    fields: dict[str, pyarrow.Field], key: str
) -> tuple[list[str], pyarrow.DataType] | None:
    """Names and type of the column `key`; a name with a dot in it comes before a nested one."""
    if key in fields:
        return [key], fields[key].type
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        outer = fields.get(".".join(parts[:count]))
        if outer is not None and types.is_struct(outer.type):
            found = _nested_field(_fields_of(outer.type), ".".join(parts[count:]))
            if found is not None:
                return [outer.name, *found[0]], found[1]
        elif outer is not None and types.is_nested(outer.type):
            return [key], outer.type
    return None


def _fields_of(struct: pyarrow.DataType) -> dict[str, pyarrow.Field]:
    return {field.name: field for field in (struct.field(i) for i in range(struct.num_fields))}


def column_names(schema: pyarrow.Schema, of_text: bool = False) -> list[str]:
    """The names of the columns, also inside structs; or only of those that can hold text."""
    names: list[str] = []
    waiting = [("", schema.field(index)) for index in range(len(schema.names))]
    while waiting:
        prefix, field = waiting.pop(0)
        name = prefix + field.name
        if types.is_struct(field.type):
            waiting = [(f"{name}.", inner) for inner in _fields_of(field.type).values()] + waiting
        elif not of_text or _is_text(field.type):
            names.append(name)
    return names


def _shown(schema: pyarrow.Schema, of_text: bool = False) -> str:
    names = column_names(schema, of_text)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{names[:_NAMES_SHOWN]}{more}" if names else "none"


def _is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column can hold text: strings and bytes of any kind, and nothing but nulls."""
    if isinstance(kind, pyarrow.BaseExtensionType):  # such as arrow.json
        kind = kind.storage_type
    if types.is_dictionary(kind):  # a category of pandas or polars
        kind = kind.value_type
    tests = (
        *(types.is_string, types.is_large_string, types.is_string_view, types.is_null),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
    )
    return any(test(kind) for test in tests)


def _values(batch: pyarrow.RecordBatch, names: list[str]) -> pyarrow.Array:
    """The text column of a batch as bytes (large_binary)."""
    column = batch.column(batch.schema.names.index(names[0]))
    for name in names[1:]:
        field = column.type.get_field_index(name)
        column = column.flatten()[field]  # with the nulls of the struct
    if isinstance(column, pyarrow.ExtensionArray):
        column = column.storage
    if isinstance(column, pyarrow.DictionaryArray):
        column = column.dictionary.take(column.indices)
    column.validate(full=False)
    return column.cast(pyarrow.large_binary())


def _texts(
    columns: list[pyarrow.Array], fields: TextFields, path: Path, first_row: int
) -> Iterator[TextOrBad]:
    """The texts of columns of bytes, not via Python strings, and rows that cannot be used."""
    valid = all(_is_utf8(column) for column in columns)
    if valid and not fields.is_template:
        yield from columns[0].to_pylist()
        return
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    for row, values in enumerate(rows, start=first_row):
        missing = values.index(None) if None in values else None
        if missing is None:
            text = fields.joined(values)
            yield (None if valid else bad_utf8(text, path, row)) or text
        elif fields.is_template:
            yield null_in_template(path, row, fields.names[missing])
        else:
            yield None


def _is_utf8(column: pyarrow.Array) -> bool:
    try:
        column.cast(pyarrow.large_string())  # checks all of them
    except pyarrow.ArrowInvalid:
        return False
    return True


def null_in_template(path: Path, row: int, name: str) -> BadRecord:
    """The record of a row without a value that a template needs."""
    return _bad_row(
        path, row, f"it holds null in column {name!r}, which the template needs; {_DROP}"
    )


def bad_utf8(text: bytes, path: Path, row: int) -> BadRecord | None:
    """The record of a row that is not UTF-8; None if it is."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 at byte {error.start}; {_DROP}"
        return _bad_row(path, row, reason)
    return None


def _bad_row(path: Path, row: int, reason: str) -> BadRecord:
    return BadRecord(str(path), row, f"row {row} (counted from 0)", reason)
