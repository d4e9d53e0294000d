"""A setting as the words of a command line that give it."""

import shlex
from collections.abc import Iterable
from typing import Any


def flag_words(key: str, value: Any) -> list[str]:
    """The words for a setting such as `optimizer.lr`, whose value is as JSON holds it."""
    prefix, dot, name = key.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{prefix}{dot}{'' if value else 'no-'}{name}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{prefix}{dot}{name}", *map(str, values)]


def command(words: Iterable[str]) -> str:
    """The words as a shell reads them."""
    return shlex.join(words)
