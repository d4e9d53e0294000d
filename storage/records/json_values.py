"""Values of Python as JSON values."""

from pathlib import Path
from typing import Any


def as_json_value(value: Any) -> Any:
    """The value with lists for tuples and strings for paths, also inside dicts and lists."""
    if isinstance(value, dict):
        return {key: as_json_value(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
