"""A sweep while it runs: a table that is rewritten on a terminal, elsewhere lines.

It also finds the runs that have diverged.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from storage.json_lines import is_count, is_number
from storage.terminal.quantities import duration, short
from train.experiments.sweeps.divergence import Divergence
from train.experiments.sweeps.outcomes import PlannedRun, RunOutcome
from train.experiments.sweeps.sweep_report import ended_line
from train.experiments.trials import Trial

_FALLBACK = (80, 24)
_ROWS_BESIDE = 3  # the heading, what is left out, and the line of the prompt
_LONGEST_NAME = 48
_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class _Progress:
    """How far a run is, from the lines that its metrics have gained since the last look."""

    def __init__(self, path: Path, steps: int) -> None:
        self.steps = steps
        self.step = 0
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.speed: float | None = None
        self.divergence = Divergence(steps)
        self._path = path
        self._read = 0

    def look(self) -> None:
        """Read what is new."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except OSError:
            return
        whole = content.rfind(b"\n") + 1
        self._read += whole
        for line in content[:whole].split(b"\n"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and is_count(found.get("step")):
                self._note(found)

    def _note(self, line: dict[str, Any]) -> None:
        self.divergence.note(line)
        self.step = line["step"] + ("train/loss" in line)
        self.loss = _number(line.get("train/loss"), self.loss)
        self.val_loss = _number(line.get("val/loss"), self.val_loss)
        self.speed = _number(line.get("speed/tokens_per_second"), self.speed)


def _number(value: Any, before: float | None) -> float | None:
    return value if is_number(value) else before


class LiveTable:
    """What a person sees of a sweep that runs: called about once a second with what is running."""

    def __init__(
        self, runs: Sequence[PlannedRun], steps: Mapping[str, int], stream: TextIO | None = None
    ) -> None:
        """`runs`: those of this process, in their order; `steps`: of each, by name."""
        self._runs = runs
        self._steps = steps
        self._stream = stream or sys.stdout
        self._on_terminal = self._stream.isatty()
        self._progress: dict[str, _Progress] = {}
        self._ended: dict[str, RunOutcome] = {}
        self._drawn = 0
        self._began = time.monotonic()
        self._steps_ended = 0

    def look(self, running: Sequence[Trial]) -> dict[str, str]:
        """Show the present state. Returns the runs that have diverged, each with the reason."""
        reasons = {}
        for trial in running:
            if trial.name not in self._progress:
                self._progress[trial.name] = _Progress(
                    trial.folder.metrics, self._steps[trial.name]
                )
                self._say(f"started  {trial.name}")
            progress = self._progress[trial.name]
            progress.look()
            if progress.divergence.at is not None:
                reasons[trial.name] = f"diverged at step {progress.divergence.at}"
        if self._on_terminal:
            self._draw([trial.name for trial in running])
        return reasons

    def ended(self, outcome: RunOutcome, taken: bool) -> None:
        """Note a run that has ended, or was `taken` as it was."""
        self._ended[outcome.run.name] = outcome
        progress = self._progress.pop(outcome.run.name, None)
        self._steps_ended += progress.step if progress is not None else 0
        line = ended_line(outcome, len(self._ended), len(self._runs))
        self._say(f"{line}  (taken)" if taken else line)

    def close(self) -> None:
        """Remove the table; what follows is printed in its place."""
        if self._drawn:
            self._stream.write(_UP_AND_CLEAR.format(self._drawn))
            self._stream.flush()
        self._drawn = 0

    def _say(self, text: str) -> None:
        if not self._on_terminal:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _draw(self, running: Sequence[str]) -> None:
        columns, rows = shutil.get_terminal_size(_FALLBACK)
        lines = self._lines(running, max(rows - _ROWS_BESIDE, 1))
        text = "".join(f"{line[: max(columns - 1, 1)]}\n" for line in lines)
        self.close()
        self._stream.write(text)
        self._stream.flush()
        self._drawn = len(lines)

    def _lines(self, running: Sequence[str], most: int) -> list[str]:
        """The heading and at most `most` rows: what runs first, then what has ended last."""
        waiting = [
            run.name
            for run in self._runs
            if run.name not in self._ended and run.name not in running
        ]
        heading = f"{len(self._ended)} of {len(self._runs)} ended, {len(running)} running"
        left = self._seconds_left()
        heading += f", about {duration(left)} left" if left is not None else ""
        chosen = [*running, *reversed(self._ended), *waiting]
        order = {run.name: number for number, run in enumerate(self._runs)}
        shown = sorted(chosen[:most], key=order.__getitem__)
        width = min(max(map(len, order)), _LONGEST_NAME)
        more = len(chosen) - len(shown)
        rows = [self._row(name, width, name in running) for name in shown]
        return [heading, *rows, *([f"and {more} more"] if more else [])]

    def _row(self, name: str, width: int, is_running: bool) -> str:
        shown = (
            name if len(name) <= width else f"{name[: width // 2 - 1]}..{name[-width // 2 + 1 :]}"
        )
        if name in self._ended:
            ended = self._ended[name]
            run = ended.summary
            loss = run.last_val_loss if run is not None and ended.state == "finished" else None
            return f"{shown:<{width}}  {ended.state:<11}  {_cell('val', loss)}"
        progress = self._progress.get(name)
        if progress is None or not is_running:
            return f"{shown:<{width}}  waiting"
        speed = f"{short(progress.speed)} tok/s" if progress.speed is not None else ""
        return (
            f"{shown:<{width}}  {progress.step:>5}/{progress.steps:<5}  "
            f"{_cell('loss', progress.loss)}  {_cell('val', progress.val_loss)}  {speed}"
        ).rstrip()

    def _seconds_left(self) -> float | None:
        """From the steps that this process has seen so far; None before the first."""
        done = self._steps_ended + sum(p.step for p in self._progress.values())
        left = sum(n for name, n in self._steps.items() if name not in self._ended)
        left -= sum(p.step for p in self._progress.values())
        return left * (time.monotonic() - self._began) / done if done else None


def _cell(what: str, value: float | None) -> str:
    return f"{what} {value:.4f}" if value is not None else " " * (len(what) + 7)


def end_of(log: Path, lines: int) -> Iterable[str]:
    """The last lines of what a run has printed."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
