"""What was measured on a GPU beside what was expected, as a table that is read in a minute."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu.expectations import EXPECTATIONS, Expectation, KeyPath, Range


@dataclass(frozen=True)
class _Comparison:
    """A measured number beside its expectation."""

    expectation: Expectation
    measured: float
    expected: Range | None

    @property
    def agrees(self) -> bool:
        """Whether the number is where it was expected, or nothing was."""
        return self.expected is None or self.expected[0] <= self.measured <= self.expected[1]


def compared(parts: Sequence[dict[str, Any]], gpu: str) -> list[_Comparison]:
    """Every expectation whose number is there, for the card of this name."""
    measured = {
        part["name"]: {"seconds": part.get("seconds"), **part["measured"]}
        for part in parts
        if part.get("measured")
    }
    found = []
    for expectation in EXPECTATIONS:
        value = _number(measured, expectation.value)
        base = _number(measured, expectation.over) if expectation.over else 1.0
        if value is not None and base:
            number = _Comparison(expectation, value / base, expectation.expected(gpu))
            found.append(number)
    return found


def table_of(parts: Sequence[dict[str, Any]], gpu: str) -> str:
    """The comparisons as Markdown, with what to do where the two disagree."""
    lines = ["| what | measured | expected | |", "| --- | --: | --: | --- |"]
    for row in compared(parts, gpu):
        expected = "-" if row.expected is None else " to ".join(map(_shown, row.expected))
        verdict = "" if row.agrees else f"**unexpected**: {row.expectation.then}"
        line = f"| {row.expectation.what} | {_shown(row.measured)} | {expected} | {verdict} |"
        lines.append(line)
    return "\n".join(lines)


def _number(measured: Any, path: KeyPath) -> float | None:
    """What is at the end of a path of keys, if it is a number."""
    for key in path:
        measured = measured.get(key) if isinstance(measured, dict) else None
    return measured if isinstance(measured, int | float) else None


def _shown(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
