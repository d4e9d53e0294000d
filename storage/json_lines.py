"""Files of JSON lines: the one place that reads, appends to and truncates them.

One rule for damage: a line that is not a JSON object in UTF-8 is skipped. Such a line is what a
power cut, a full disk or a killed process leaves. A missing file has no lines.
"""

import json
import os
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16  # longer than any line that we write


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, in order.

    A torn or damaged line is skipped. A missing file gives an empty list.
    """
    return [value for value in read_every_line(path) if value is not None]


def read_every_line(path: Path) -> list[dict[str, Any] | None]:
    """Like `read_lines`, but with None for a damaged line: position n is line n + 1 of the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    # Not str.splitlines, which also splits at characters that a JSON string may contain.
    lines = content.split(b"\n")
    if not lines[-1]:  # after the end of the last line
        del lines[-1]
    return [_parsed(line) for line in lines]


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
    with path.open("a+b") as file:
        torn = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(value).encode() + b"\n")


def truncate_metrics(metrics: Path, discarded: Path, first_step: int) -> int:
    """Move metric lines of `first_step` and later, and damaged ones, to `discarded`.

    Returns the step of the last line that stays, -1 if none does.
    """
    if not metrics.is_file():
        return -1
    kept, moved, last = [], [], -1
    for line in metrics.read_bytes().splitlines():
        step = (_parsed(line) or {}).get("step", first_step)
        if step < first_step:
            kept.append(line + b"\n")
            last = step
        else:
            moved.append(line.decode("utf-8", errors="replace") + "\n")
    if moved:
        with discarded.open("a", encoding="utf-8") as file:
            file.writelines(moved)
        temporary = metrics.with_name(".metrics.jsonl.partial")
        temporary.write_bytes(b"".join(kept))
        temporary.replace(metrics)
    return last


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if the line is damaged."""
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def column(lines: list[dict[str, Any]], tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have this tag."""
    found = [(line["step"], line[tag]) for line in lines if line.get(tag) is not None]
    return [step for step, _ in found], [value for _, value in found]
