"""JSON-lines files: one object a line, with the text under a key."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.sources.byte_streams import Content, TruncatedFile, compression_of
from data_prep.sources.pieces import Piece, TextOrBad, grouped
from data_prep.sources.records import BadRecord
from data_prep.sources.splitting import Separator, split_content
from data_prep.sources.text_encodings import BYTE_ORDER_MARK, check_encoding, not_utf8, read_head
from data_prep.sources.text_fields import TextFields, text_fields
from data_prep.tokenizer import utf8

_LINE_END = Separator(b"\n")
_KEYS_SHOWN = 20
_RECORDS_LOOKED_AT = 100  # to find the keys of text
_DROP = "repair or drop the line"
# Integers as floats: Python refuses to convert those of more than 4,300 digits.
_DECODER = json.JSONDecoder(parse_int=float)
_MISSING = object()


class JsonLinesFormat:
    """A .jsonl file: one JSON object per line, with the text under `text_key` or of a template."""

    def __init__(self, text_key: str, separator: str, template: str | None = None) -> None:
        self._fields = text_fields(text_key, template)
        self._key = text_key if template is None else None

    def pieces(self, path: Path, piece_bytes: int) -> Iterator[Piece]:
        """Pieces end after a line; sizes are those of the lines, including their keys."""
        head = read_head(path)
        check_encoding(path, head)
        _check_lines(path, head)
        return grouped(self._bounds(path), piece_bytes)

    def _bounds(self, path: Path) -> Iterator[tuple[int, int]]:
        start = 0
        try:
            for line, closed in split_content(Content(path), _LINE_END):
                stop = start + len(line) + closed
                if closed or line:
                    yield start, stop
                start = stop
        except TruncatedFile as error:
            yield start, start + error.rest + 1  # so that reading it meets the end, too

    def texts(self, content: Content, start: int, stop: int, first_row: int) -> Iterator[TextOrBad]:
        """The texts of the lines; a blank line or a null is an empty document."""
        offset, row = start, first_row
        try:
            for line, closed in split_content(content, _LINE_END, start, stop):
                if closed or line:
                    found = self._text(line, content.path) if line.strip() else None
                    if isinstance(found, str):
                        place = f"line {row + 1} (byte {offset})"
                        found = BadRecord(str(content.path), row, place, found)
                    yield found
                offset, row = offset + len(line) + closed, row + 1
        except TruncatedFile as error:
            yield BadRecord.truncated(content.path, row, f"line {row + 1}", offset, error)

    def _text(self, line: bytes, path: Path) -> bytes | str | None:
        """The text of a line, or a sentence that says why it has none."""
        try:
            row = _DECODER.decode(line.removeprefix(BYTE_ORDER_MARK).decode())
        except UnicodeDecodeError as error:
            return not_utf8(line, error.start, path)
        except RecursionError:
            return f"it is JSON nested too deep; {_DROP}"
        except ValueError as error:
            return f"it is not JSON ({error}); {_DROP}"
        if self._key is not None and isinstance(value := _value_at(row, self._key), str):
            return utf8(value)
        values: list[bytes] = []
        for name in self._fields.names:
            value = _value_at(row, name)
            if value is None and not self._fields.is_template:
                return None
            if not isinstance(value, str):
                return _unusable(row, value, name, self._fields)
            values.append(utf8(value))
        return self._fields.joined(values)


def _unusable(row: Any, value: Any, name: str, fields: TextFields) -> str:
    """Why a value that is no text cannot be used."""
    what = "the keys it has" if fields.is_template else "it"
    if value is _MISSING:
        found = _keys(row) if isinstance(row, dict) else _kind(row)
        return f"it has no key {name!r} (it has {found}); name {what} with {fields.option}"
    if value is None:
        return f"it holds null under {name!r}, which the template needs; {_DROP}"
    what = "keys" if fields.is_template else "the key"
    return (
        f"it holds {_kind(value)} under {name!r}, which must be text; "
        f"name {what} of the text with {fields.option}"
    )


def _value_at(row: Any, key: str) -> Any:
    """The value under `key`; `a.b` is also the key b of the object under a. _MISSING if none."""
    if not isinstance(row, dict):
        return _MISSING
    if key in row:
        return row[key]
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:count])
        if outer in row:
            found = _value_at(row[outer], ".".join(parts[count:]))
            if found is not _MISSING:
                return found
    return _MISSING


def _keys(row: dict[str, Any]) -> str:
    keys = [f"{key}.{inner}" for key, value in row.items() for inner in _inner_keys(value)]
    shown = sorted([*row, *keys])
    more = f" and {len(shown) - _KEYS_SHOWN} more" if len(shown) > _KEYS_SHOWN else ""
    return f"{shown[:_KEYS_SHOWN]}{more}"


def _inner_keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {float: "a number", list: "a list", dict: "an object", str: "a text"}
    return kinds.get(type(value), "null")


def _check_lines(path: Path, head: bytes) -> None:
    """Raises: ValueError with the cure if the file is one JSON document over several lines."""
    lines = [line.strip() for line in head.removeprefix(BYTE_ORDER_MARK).split(b"\n", 2)]
    first = lines[0] or (lines[1] if len(lines) > 1 else b"")
    if first.startswith(b"["):
        alone = not any(lines[lines.index(first) + 1 :])
        document = alone or not _is_json(first)
    else:
        # A torn first line looks alike, but another object follows it.
        second = lines[lines.index(first) + 1 :][:1]
        inside = second and second[0].startswith(b'"')
        document = first.startswith(b"{") and bool(inside) and not _is_json(first)
    if document:
        reader = {".gz": "gzip -dc", ".bz2": "bzip2 -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}
        packed = compression_of(path.name)
        filters = "'.[]'" if first.startswith(b"[") else "."
        jq = f"jq -c {filters}"
        made = f"{reader[packed]} {path.name} | {jq}" if packed else f"{jq} {path.name}"
        nested = "" if filters != "." else " (or '.KEY[]' for the list under KEY)"
        raise ValueError(
            f"{path} is one JSON document over several lines, not JSON lines; "
            f"write one record a line with `{made} > records.jsonl`{nested}"
        )


def text_keys(path: Path) -> list[str]:
    """The keys that hold text in the first records, also inside objects; none that also hold more.

    Raises: ValueError if the file cannot be read.
    """
    kinds: dict[str, set[type]] = {}
    lines = (line for line, _ in split_content(Content(path), _LINE_END))
    for line in islice(filter(bytes.strip, lines), _RECORDS_LOOKED_AT):
        try:
            row = _DECODER.decode(line.removeprefix(BYTE_ORDER_MARK).decode())
        except (ValueError, RecursionError):  # a bad record, which is found when it is read
            continue
        waiting = [("", row)] if isinstance(row, dict) else []
        for prefix, fields in waiting:
            for key, value in fields.items():
                if isinstance(value, dict):
                    waiting.append((f"{prefix}{key}.", value))
                elif value is not None:
                    kinds.setdefault(prefix + key, set()).add(type(value))
    return [key for key, found in kinds.items() if found == {str}]


def is_one_object(path: Path) -> bool:
    """Whether a file is one JSON object over several lines, as files of settings are."""
    head = read_head(path)
    try:
        _check_lines(path, head)
    except ValueError:
        return head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{")
    return False


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
