"""What became of the runs of a sweep, from their folders alone, and which is the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from storage.json_lines import read_metrics
from storage.run_folder import RunFolder
from storage.user_errors import reason_of
from train.experiments.paired_test import GroupDifference, compare_pairs
from train.experiments.sweeps.divergence import diverged_at
from train.reporting.run_summary import RunSummary, summarize_run

TrialState = Literal["waiting", "running", "interrupted", "finished", "diverged", "failed"]
ERROR_RATE = 0.05
"""Chance that the best is told apart from some other combination that is as good."""
_LOG_END_BYTES = 4096


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: its folder, its values and its seed."""

    name: str
    path: Path
    settings: dict[str, Any]
    seed: int

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.path.with_name(f"{self.path.name}.log")


@dataclass(frozen=True)
class RunOutcome:
    """What became of a run so far."""

    run: PlannedRun
    state: TrialState
    reason: str = ""
    """Why it failed or was interrupted."""
    diverged_at: int | None = None
    summary: RunSummary | None = None
    """None before its first step."""


@dataclass(frozen=True)
class PointResult:
    """One combination of values: what its runs have reached."""

    settings: dict[str, Any]
    outcomes: tuple[RunOutcome, ...]
    losses: dict[int, float]
    """The measure that is compared, by seed, of the runs that have finished."""

    @property
    def is_complete(self) -> bool:
        """Whether the runs of all seeds have finished."""
        return len(self.losses) == len(self.outcomes)

    @property
    def diverged(self) -> int:
        """How many of its runs have diverged."""
        return sum(outcome.state == "diverged" for outcome in self.outcomes)

    @property
    def mean(self) -> float | None:
        """Mean of the losses; None without one."""
        return fmean(self.losses.values()) if self.losses else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the losses over seeds; None of fewer than two."""
        return stdev(self.losses.values()) if len(self.losses) > 1 else None


@dataclass(frozen=True)
class Ranking:
    """The best combination, and how surely it is better than each other."""

    points: list[PointResult]
    """Those whose runs of all seeds have finished, the best first."""
    differences: list[GroupDifference] = field(default_factory=list)
    """Each other minus the best, by pairs of seeds, at the error rate over all of them."""


def outcome_of(run: PlannedRun) -> RunOutcome:
    """What became of a run. Only reads, also while the run is in progress."""
    folder = RunFolder(run.path)
    if not folder.config.is_file():  # it has not begun, or ended before it could
        end = _log_end(run.log)
        if folder.is_locked():
            return RunOutcome(run, "running")
        return RunOutcome(run, "failed" if end else "waiting", end)
    try:
        summary = summarize_run(run.path, run.name)
    except (ValueError, OSError) as error:
        return RunOutcome(run, "failed", reason_of(error))
    step = diverged_at(read_metrics(folder.metrics), summary.steps)
    if step is not None:
        return RunOutcome(run, "diverged", diverged_at=step, summary=summary)
    state: dict[str, TrialState] = {s: s for s in ("running", "finished", "failed")}
    return RunOutcome(run, state.get(summary.state, "interrupted"), summary.reason, None, summary)


def _log_end(path: Path) -> str:
    """The last line of what a run has printed; empty if it has printed nothing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_END_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def compared_in_bits(outcomes: Sequence[RunOutcome]) -> bool:
    """Whether bits per byte are compared: losses of different tokens do not compare."""
    return len({o.summary.validation for o in outcomes if o.summary is not None}) > 1


def point_results(outcomes: Sequence[RunOutcome]) -> list[PointResult]:
    """The outcomes by combination, in the order of the first of each."""
    in_bits = compared_in_bits(outcomes)
    members: dict[tuple[str, ...], list[RunOutcome]] = {}
    for outcome in outcomes:
        key = tuple(f"{value!r}" for value in outcome.run.settings.values())
        members.setdefault(key, []).append(outcome)
    return [
        PointResult(group[0].run.settings, tuple(group), _losses(group, in_bits))
        for group in members.values()
    ]


def _losses(outcomes: Sequence[RunOutcome], in_bits: bool) -> dict[int, float]:
    found = {}
    for outcome in outcomes:
        run = outcome.summary
        if outcome.state == "finished" and run is not None:
            loss = run.last_bits_per_byte if in_bits else run.last_val_loss
            if loss is not None:
                found[outcome.run.seed] = loss
    return found


def rank(points: Sequence[PointResult]) -> Ranking | None:
    """The best combination by mean loss over seeds; None if no combination has all its runs.

    The error rate of the comparisons with the best is divided by their number (Bonferroni), since
    the best is chosen from all of them.
    """
    complete = [point for point in points if point.is_complete]
    if not complete:
        return None
    ordered = sorted(complete, key=lambda point: point.mean or 0.0)
    best, others = ordered[0].losses, ordered[1:]
    if len(best) < 2 or not others:
        return Ranking(ordered)
    rate = ERROR_RATE / len(others)
    seeds = sorted(best)
    pairs = ([best[s] for s in seeds], [[other.losses[s] for s in seeds] for other in others])
    return Ranking(ordered, [compare_pairs(pairs[0], values, rate) for values in pairs[1]])


def largest_stable(points: Sequence[PointResult], setting: str) -> Mapping[str, Any] | None:
    """The largest value below the first that diverged with some seed; None if there is none.

    `points` are those of a range test.
    """
    stable = None
    for point in sorted(points, key=lambda point: point.settings[setting]):
        if point.diverged:
            break
        if point.is_complete:
            stable = point.settings
    return stable
