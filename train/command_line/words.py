"""The words of a command line, before a parser reads them."""

from collections.abc import Sequence

from storage.option_values import own_path


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
