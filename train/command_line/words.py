"""The words of a command line, before a parser reads them."""

from collections.abc import Sequence
from pathlib import Path

from storage.option_values import own_path


def taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value that the words give to a flag, and the other words; None if it is not given.

    Raises: ValueError if it has no value, or two that differ.
    """
    values, others = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else next(remaining, ""))
        else:
            others.append(word)
    if len(set(values)) > 1:
        raise ValueError(f"{flag} is given as {' and as '.join(values)}; give it once")
    return (values[0] if values else None), others


def taken_path(words: Sequence[str], flag: str, what: str) -> tuple[Path | None, list[str]]:
    """The same for a flag that takes a path; `what` says in an error what the path is of."""
    value, others = taken(words, flag)
    if value is None:
        return None, others
    if not value or value.startswith("--"):
        raise ValueError(f"{flag} has no value; give {what}")
    return Path(_path(flag, value)), others


def _given_values(words: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    """The values that the words give to these flags, as `--flag value` or `--flag=value`.

    A flag that is not given is not in the result; of one given twice the last value counts.
    """
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in flags:
            found[flag] = value if equals else following
    return found


def given_paths(words: Sequence[str], flags: Sequence[str]) -> dict[str, str]:
    """The same for flags that take a path, with `~` replaced.

    Raises: ValueError for what cannot be a path, naming the flag.
    """
    return {flag: _path(flag, value) for flag, value in _given_values(words, flags).items()}


def _path(flag: str, value: str) -> str:
    try:
        return str(own_path(value))
    except ValueError as error:
        raise ValueError(f"{flag} {value} {error}") from error
