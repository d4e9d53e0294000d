"""Reading and truncating files of JSON lines."""

import json
from pathlib import Path
from typing import Any


def truncate_metrics(metrics: Path, discarded: Path, first_step: int) -> int:
    """Move metric lines of `first_step` and later, and torn or damaged ones, to `discarded`.

    Returns the step of the last line that stays, -1 if none does.
    """
    if not metrics.is_file():
        return -1
    kept, moved = [], []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        (kept if _step_of(line) < first_step else moved).append(line + "\n")
    if moved:
        with discarded.open("a", encoding="utf-8") as file:
            file.writelines(moved)
        aside = metrics.with_name(".metrics.jsonl.partial")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(metrics)
    return int(_step_of(kept[-1])) if kept else -1


def _step_of(line: str) -> float:
    if "\ufffd" in line:  # stands for a byte that is no text; we write ASCII alone
        return float("inf")
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def column(lines: list[dict[str, Any]], tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have this tag."""
    found = [(line["step"], line[tag]) for line in lines if line.get(tag) is not None]
    return [step for step, _ in found], [value for _, value in found]
