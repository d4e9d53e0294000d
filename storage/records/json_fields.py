"""Checks the types of fields in a JSON file: a damaged one is named before it is used."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_origin

_LARGEST_COUNT = 2**64
_LARGEST_NUMBER = 1e300
_NAMES = {
    int: "a whole number from 0 on",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def check_fields(
    path: Path, found: Any, kinds: Mapping[str, type | tuple[type, ...]], cure: str
) -> dict[str, Any]:
    """`found`, the content of the JSON file at `path`, if it is an object with these fields.

    The name `run.steps` is the field `steps` of the object `run`. `int` means a count, so no
    negative number; `float` also takes whole numbers. A tuple lists what a field may be, and a
    field that may be `type(None)` may be missing.
    Raises: ValueError with the file, the field, what it must be, and `cure`.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{path} is {_shown(found)}, not an object, so it is damaged; {cure}")
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        value: Any = found
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not any(_is_a(value, one) for one in allowed):
            wanted = " or ".join(_NAMES[one] for one in allowed if one is not type(None))
            raise ValueError(
                f"{path} is damaged: {name} is {_shown(value)} but must be {wanted}; {cure}"
            )
    return found


def check_field_types(path: Path, entry: Any, cure: str) -> None:
    """Check the numbers and texts of a dataclass that was made from the JSON file at `path`.

    Raises: ValueError as `check_fields` does.
    """
    kinds: dict[str, Any] = {f.name: get_origin(f.type) or f.type for f in fields(entry)}
    kinds = {name: kind for name, kind in kinds.items() if kind in (int, float, str, dict)}
    check_fields(path, {name: getattr(entry, name) for name in kinds}, kinds, cure)


def _is_a(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value <= _LARGEST_COUNT
    if kind is float:
        return type(value) in (int, float) and abs(value) < _LARGEST_NUMBER
    return type(value) is kind


def _shown(value: Any) -> str:
    """The beginning of a value, as JSON names it."""
    if value is None:
        return "missing or null"
    if isinstance(value, list | dict):
        return f"{_NAMES[type(value)]} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
