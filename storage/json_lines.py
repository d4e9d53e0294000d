"""Files of JSON lines: the one place that reads, appends to and truncates them.

One rule for damage: a line that is not a JSON object in UTF-8 is skipped. Such a line is what a
power cut, a full disk or a killed process leaves. A missing file has no lines.
"""

import json
import os
from pathlib import Path
from typing import IO, Any, TypeGuard

from storage.atomic import new_file

_TAIL_BYTES = 1 << 16  # longer than any line that we write
_LAST_LINES = 50  # that are read of a file that is thinned
_LARGEST_STEP = 2**53  # larger integers lose digits as a float
_LARGEST_VALUE = 1e300  # float() and a plot take every number up to it


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, in order.

    A torn or damaged line is skipped. A missing file gives an empty list.
    """
    return [value for value in read_every_line(path) if value is not None]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl by step. A line without a step that is a number is skipped.

    Of several lines for one step the last one counts, as that step was done again.
    """
    return _by_step(read_lines(path))


def read_thinned_metrics(path: Path, most: int, whole: tuple[bytes, ...]) -> list[dict[str, Any]]:
    """Like `read_metrics`, but of more than `most` lines only every n-th, which is faster.

    Lines that contain one of `whole` are read too, and the last ones.
    """
    raw = _raw_lines(path)
    every = -(-len(raw) // most) if raw else 1
    last = len(raw) - _LAST_LINES
    chosen = (
        line
        for number, line in enumerate(raw)
        if number % every == 0 or number >= last or any(part in line for part in whole)
    )
    return _by_step([value for line in chosen if (value := _parsed(line)) is not None])


def _by_step(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines = {line["step"]: line for line in found if is_count(line.get("step"))}
    return [lines[step] for step in sorted(lines)]


def read_every_line(path: Path) -> list[dict[str, Any] | None]:
    """Like `read_lines`, but with None for a damaged line: position n is line n + 1 of the file."""
    return [_parsed(line) for line in _raw_lines(path)]


def read_last_line(path: Path) -> dict[str, Any] | None:
    """The last undamaged line, read from the end of the file; None if there is none.

    For a file that another process is still writing and that is polled often.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    values = (_parsed(line) for line in reversed(lines))
    return next((value for value in values if value is not None), None)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append an object as one line; start a new line first if the last one is torn."""
    with open_to_append(path) as file:
        append_to(file, value)


def open_to_append(path: Path) -> IO[bytes]:
    """Open a file for `append_to`."""
    # Without a buffer: after a write that failed, nothing of it is written later.
    return path.open("a+b", buffering=0)


def append_to(file: IO[bytes], value: dict[str, Any]) -> None:
    """The same for a file that `open_to_append` has opened. The line is then with the kernel.

    Raises: OSError if the line could not be written whole. Its beginning may stand in the file;
    readers skip it, and the next line begins after it.
    """
    torn = False
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        torn = file.read(1) != b"\n"
    write_all(file, b"\n" * torn + json.dumps(value).encode() + b"\n")


def write_all(file: IO[bytes], content: bytes) -> None:
    """Write `content` to a file without a buffer; a disk that becomes full takes only a part."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def truncate_metrics(metrics: Path, discarded: Path, first_step: int) -> int:
    """Move metric lines of `first_step` and later, and damaged ones, to `discarded`.

    Returns the largest step of the lines that stay, -1 if none does.
    """
    if not metrics.is_file():
        return -1
    kept, moved, last = [], [], -1
    for line in filter(None, _raw_lines(metrics)):
        step = (_parsed(line) or {}).get("step")
        if is_count(step) and step < first_step:
            kept.append(line + b"\n")
            last = max(last, step)
        else:
            moved.append(line.decode("utf-8", errors="replace") + "\n")
    if moved:
        with discarded.open("a", encoding="utf-8") as file:
            file.writelines(moved)
        with new_file(metrics) as temporary:
            temporary.write_bytes(b"".join(kept))
    return last


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value of a JSON file is a whole number that can be a step."""
    return type(value) is int and 0 <= value < _LARGEST_STEP


def column(lines: list[dict[str, Any]], tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines in which this tag is a number."""
    found = [(line["step"], line[tag]) for line in lines if is_number(line.get(tag))]
    return [step for step, _ in found], [value for _, value in found]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON file is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) < _LARGEST_VALUE


def _raw_lines(path: Path) -> list[bytes]:
    """The lines of a file without their ends; none if it is missing."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    # Not bytes.splitlines, which also splits at a carriage return.
    lines = content.split(b"\n")
    if not lines[-1]:  # after the end of the last line
        del lines[-1]
    return lines


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if the line is damaged."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
