"""The words of a command line, before a parser reads them."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from storage.option_values import own_path


def taken(words: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value that the words give to a flag, and the other words; None if it is not given.

    Of several values the last counts, so that a script can append one.
    """
    values, others = _values_and_others(words, flag)
    return (values[-1] if values else None), others


def _values_and_others(words: Sequence[str], flag: str) -> tuple[list[str], list[str]]:
    values, others = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name == flag:
            values.append(value if equals else next(remaining, ""))
        else:
            others.append(word)
    return values, others


def taken_path(words: Sequence[str], flag: str, what: str) -> tuple[Path | None, list[str]]:
    """The same for a flag that takes one path; `what` says in an error what the path is of.

    Raises: ValueError if it has no value, or two that differ.
    """
    values, others = _values_and_others(words, flag)
    if not values:
        return None, others
    if any(not value or value.startswith("--") for value in values):
        raise ValueError(f"{flag} has no value; give {what}")
    if len(set(values)) > 1:
        raise ValueError(f"{flag} is given as {' and as '.join(values)}; give it once")
    return Path(_path(flag, values[0])), others


def places_of(words: Sequence[str], flag: str) -> tuple[Path, ...]:
    """All values that the words give to a flag that takes several; of one given twice the last."""
    values, _ = _values_and_others(words, flag)
    if not values:
        return ()
    at = max(i for i, word in enumerate(words) if word.partition("=")[0] == flag)
    if words[at] != flag:
        return (Path(_path(flag, values[-1])),)
    rest = takewhile(lambda word: not word.startswith("-"), words[at + 1 :])
    return tuple(Path(_path(flag, value)) for value in rest)


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
