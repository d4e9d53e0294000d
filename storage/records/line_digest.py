"""A running digest of a run's metric lines: each line is added to what was before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.digest import fingerprint

_OF_A_STEP = "data/digest"  # the last line of a finished run has none and belongs to no step


def reproducible(line: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a metric line that must be reproduced: all but the speeds.

    What rank 0 alone adds, beside a band, a surviving rank's copy of the line lacks.
    """
    return {k: value for k, value in line.items() if not k.startswith(("speed/", "band/"))}


@dataclass
class LineDigest:
    """The digest of all lines of steps since it began, as every rank knows them."""

    began: dict[str, Any] = field(default_factory=dict)
    """Where it began: the step, and the digest of the weights there."""
    until: int = 0
    """The step after the last one that is in it."""
    value: str = ""

    @classmethod
    def begin(cls, step: int, weights: str) -> "LineDigest":
        """A digest of no line, before `step`, for a run with these weights."""
        began = {"step": step, "weights": weights}
        return cls(began, step, fingerprint(began))

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line, as JSON has it, if it is that of a step."""
        if _OF_A_STEP in line:
            self.value = fingerprint([self.value, reproducible(line)])
            self.until = line["step"] + 1
