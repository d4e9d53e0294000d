"""The verdict of an audit: Markdown for a person, the same as JSON for a program."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import Any

import torch

from parallel.ranks import Ranks
from storage.terminal.printable import printable
from train.auditing.recorded_run import RecordedRun
from train.auditing.segments import SegmentResult
from train.recovery.resume_proof.comparison import ProofResult


@dataclass(frozen=True)
class AuditVerdict:
    """All that an audit has found."""

    run: str
    run_id: str
    data_fingerprint: str
    chain: Sequence[ProofResult]
    segments: Sequence[SegmentResult]
    drawable: int
    """How many segments could have been drawn."""
    seed: int
    """Of the draw."""
    notes: Sequence[str]
    machine: str

    @property
    def holds(self) -> bool:
        """Whether nothing was found that contradicts the records."""
        return all(f.holds for f in self.chain) and not any(s.problems for s in self.segments)

    def chance(self, forged: int) -> float:
        """How likely a draw contains one of `forged` segments."""
        count = len(self.segments)
        return 1 - comb(self.drawable - forged, count) / comb(self.drawable, count)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a program."""
        found = asdict(self) | {"holds": self.holds}
        return found | {"verdict": "passed" if self.holds else "failed"}

    def text(self) -> str:
        """Markdown."""
        rows = [(f.what, f.holds, f.detail) for f in self.chain]
        for s in self.segments:
            problems = "; ".join(s.problems)
            ended = f"{s.steps} steps and the state after them" if s.whole else f"{s.steps} steps"
            detail = problems or f"{ended}: {s.how}"
            rows.append(
                (f"steps {s.first} to {s.first + s.steps - 1} repeated", not problems, detail)
            )
        steps = sum(s.steps for s in self.segments)
        return "\n".join(
            [
                f"### Audit of {self.run}: {'PASSED' if self.holds else 'FAILED'}",
                "",
                "| what | holds | detail |",
                "| --- | --- | --- |",
                *(_row(*row) for row in rows),
                "",
                f"Run {self.run_id or 'without an identity'}, data {self.data_fingerprint[:16]}. "
                f"{len(self.segments)} of {self.drawable} segments ({steps} steps), drawn with "
                f"--seed {self.seed}, were repeated on {self.machine}.",
                "",
                "What this does not show:",
                "",
                *(f"* {note}" for note in [*self._limits(), *self.notes]),
            ]
        )

    def _limits(self) -> list[str]:
        found = []
        if self.segments and self.drawable > len(self.segments):
            half = max(1, self.drawable // 2)
            found.append(
                "Whoever forges a segment and computes the chain again is found only where it is "
                f"drawn: one segment with a probability of {self.chance(1):.0%}, {half} of "
                f"{self.drawable} with {self.chance(half):.1%}."
            )
        if any(not s.whole for s in self.segments):
            found.append("Of a segment only the first steps were repeated, and not its last state.")
        if any(s.how != "bit for bit" for s in self.segments):
            found.append("Where bits may differ, a change smaller than the tolerance is not found.")
        found.append("Scores of tasks, samples and times are not repeated.")
        return found


def _row(what: str, holds: bool, detail: str) -> str:
    """A row of the table. A record may come from anybody, and may hold any character."""
    shown = printable(detail).replace("|", "/").replace("\n", " ")
    return f"| {what} | {'yes' if holds else '**NO**'} | {shown} |"


def machine_of(ranks: Ranks) -> str:
    """What repeats the steps, in words."""
    device = "cpu " + torch.backends.cpu.get_cpu_capability()
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name(ranks.device)
    return (
        f"{ranks.world_size} rank{'s' * (ranks.world_size > 1)}, {device}, torch "
        f"{torch.__version__}, Python {platform.python_version()}"
    )


def notes_on_the_beginning(run: RecordedRun) -> list[str]:
    """What the records cannot say of how the run began."""
    found = []
    if run.parent:
        found.append(
            f"Steps before {run.first_step} were made by the run {run.parent.get('run_id')} "
            f"({run.parent.get('path')}): audit that one."
        )
    elif init := run.record["config"].get("init"):
        found.append(f"How the initial weights, --init {init}, were made.")
    return found
