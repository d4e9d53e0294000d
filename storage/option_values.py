"""What the value of an option may be, in every script: paths, whole numbers and numbers.

`~` is the home folder, a path is not empty and not longer than file systems take, whole numbers
fit in 64 bits, numbers are finite.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

_LONGEST_NAME = 255  # bytes of a file's name: NAME_MAX of Linux and macOS
_LONGEST_PATH = 4095  # PATH_MAX of Linux, without the zero byte at its end
_LARGEST = 2**64 - 1
_LARGEST_COUNT = 10**12  # of anything that is counted
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}


class AtMost(int):
    """A number that a preset or a default chose: if there is less, less will do.

    A number that a user gave is a plain int: if there is less, that is an error.
    """


class _UnfitError(ValueError):
    """A value that no option of its kind takes; the text follows the option and the value."""


def own_path(text: str) -> Path:
    """The path that a user means: `~` is the home folder, also where no shell replaces it.

    Raises: ValueError if no file can have this path.
    """
    if not text:
        raise _UnfitError("is empty; give a path (. is the present folder)")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise _UnfitError(f"names the home folder of {user}, who is no user here; write ./{text}")
    if "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
        raise _UnfitError(f"is no path; give one of at most {_LONGEST_PATH} bytes")
    if (longest := max(len(os.fsencode(name)) for name in path.split("/"))) > _LONGEST_NAME:
        raise _UnfitError(
            f"has a name of {longest} bytes, but file systems take at most {_LONGEST_NAME}; "
            "choose a shorter one"
        )
    return Path(path)


def check_output_file(option: str, path: Path | None) -> None:
    """Raises: ValueError if no file can be written to the path, before the work that fills it."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{option} {path} is below {above}, which is no folder; give another path")
    if not os.access(above, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written in {above}; give another path")


def whole_number(text: str) -> int:
    """The number. Raises: ValueError if it is none, or does not fit in 64 bits."""
    number = int(text)
    if abs(number) > _LARGEST:
        raise _UnfitError(f"does not fit in 64 bits; give at most {_LARGEST}")
    return number


def finite_number(text: str) -> float:
    """The number. Raises: ValueError if it is none, or not finite."""
    number = float(text)
    if not abs(number) < float("inf"):
        raise _UnfitError("is not finite; give a number")
    return number


_READERS: dict[str, Callable[[str], object]] = {
    "INT": whole_number,
    "FLOAT": finite_number,
    "PATH": own_path,
}


def about_value(option: str, metavar: str, words: Sequence[str]) -> str:
    """What is wrong with the value of an option that reads `metavar`, such as INT|{auto}.

    `words` are those of the command line.
    """
    names: list[str] = list(dict.fromkeys(re.findall(r"[A-Z]+|\{[^}]*\}", metavar)))
    readers = [_READERS[name] for name in names if name in _READERS]
    kinds = [_KINDS.get(name) or name.strip("{}").replace(",", ", ") for name in names]
    rule = f"is not {' or '.join(kinds)}; give one"
    values = _values_of(option, words)
    for value in values:
        problems = [problem for read in readers if (problem := _problem(read, value)) is not None]
        if len(problems) == len(readers) > 0:
            unfit = (str(problem) for problem in problems if isinstance(problem, _UnfitError))
            return f"{option} {value or repr(value)} {next(unfit, rule)}"
    return f"{option} {' '.join(values)} {rule}"


def _values_of(option: str, words: Sequence[str]) -> list[str]:
    """The words that belong to an option; for a positional one, all that may belong to it."""
    if not option.startswith("--"):
        return [word for word in words if not word.startswith("--")]
    found: list[str] = []
    inside = False
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            found += [word] if inside else []
        elif inside := name.replace("_", "-") == option:
            found = [value] if equals else []  # the last one counts
    return found


def _problem(read: Callable[[str], object], value: str) -> ValueError | None:
    try:
        read(value)
    except ValueError as error:
        return error
    return None


def check_at_least(name: str, value: float, smallest: int, largest: int = _LARGEST_COUNT) -> None:
    """Raises: ValueError if a number is not between these two."""
    if not smallest <= value:
        raise ValueError(f"{name}={value} is out of range; use {smallest} or more")
    if not value <= largest:
        raise ValueError(f"{name}={value} is out of range; use at most {largest}")
