"""Makes the runs of a sweep and reports them: table, sentences, sweep.json and picture."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from parallel.ranks import job_id
from parallel.stop_signals import StopRequest
from storage.exit_codes import FAILED_CODE, PREEMPTED_CODE
from storage.terminal.quantities import counted
from train.experiments.sweeps.grid import GridPoint
from train.experiments.sweeps.live_table import LiveTable, end_of
from train.experiments.sweeps.outcomes import (
    RunOutcome,
    compared_in_bits,
    outcome_of,
    point_results,
)
from train.experiments.sweeps.sweep_picture import draw_sweep
from train.experiments.sweeps.sweep_record import (
    SweepPlan,
    result_lock,
    sweep_lock,
    write_record,
)
from train.experiments.sweeps.sweep_report import format_points, sweep_verdict
from train.experiments.trial_runs import Ended, Look, TrialRunner
from train.experiments.trials import Trial

_LEAST_WIDTH = 60
_FALLBACK = (100, 24)
_ENDED = ("finished", "diverged")  # as far as they will ever be
_LOG_LINES = 12  # of a run that has failed
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HowToRun:
    """How the runs of a sweep are made."""

    parallel: int
    """Runs at the same time."""
    processes: int
    """Ranks of each."""
    first: int
    """Number of the first run of this process, from 0 on."""
    every: int
    """Distance to its next."""

    @property
    def shard(self) -> str:
        """Its share, as 1/4; empty for all runs."""
        return f"{self.first + 1}/{self.every}" if self.every > 1 else ""


class _Stopped(Exception):
    """The sweep was asked to stop; its runs save."""


def run_sweep(
    plan: SweepPlan, points: Sequence[GridPoint], steps: Mapping[str, int], how: HowToRun
) -> int:
    """Make the runs that are still to be made, and report; returns the exit code.

    `steps`: of each run, by name. Raises: ValueError if another process makes these runs.
    """
    with sweep_lock(plan.folder, how.shard, job_id()):
        grid = f"{counted(len(points), 'combination')}, {counted(len(plan.seeds), 'seed')} each"
        log.info("%s in %s: %s", counted(len(plan.runs), "run"), plan.folder, grid)
        with result_lock(plan.folder):
            write_record(plan, [outcome_of(run) for run in plan.runs])
        trials = {trial.name: trial for point in points for trial in point.trials}
        try:
            left = _make_runs(plan, trials, steps, how)
        except _Stopped:
            log.info("stopped; the same command continues")
            return PREEMPTED_CODE
        except RuntimeError as error:
            log.error("error: %s; the same command continues", error)
            return FAILED_CODE
        with result_lock(plan.folder):
            report_sweep(plan, write=True)
    if left and "failed" not in left:
        log.info("%s stopped early; the same command continues", counted(len(left), "run"))
        return PREEMPTED_CODE
    return FAILED_CODE if left else 0


def _make_runs(
    plan: SweepPlan, trials: Mapping[str, Trial], steps: Mapping[str, int], how: HowToRun
) -> list[str]:
    """Make the runs of this process that are still to be made.

    Returns the state of each that has not ended well. Raises: _Stopped, RuntimeError.
    """
    own = plan.runs[how.first :: how.every]
    table = LiveTable(own, {run.name: steps[run.name] for run in own})
    waiting = []
    for run in own:
        outcome = outcome_of(run)
        if outcome.state in _ENDED:
            table.ended(outcome, taken=True)
        else:
            waiting.append(trials[run.name])
    if not waiting:
        return []
    stop = StopRequest("asking the runs to save and stop", nothing_to_save=False)
    left: list[RunOutcome] = []
    with stop.listening(), TrialRunner(how.parallel, how.processes) as runner:
        try:
            for ended in runner.run(waiting, _watching(table, stop)):
                outcome = _outcome(plan, ended)
                table.ended(outcome, ended.taken)
                left += [] if outcome.state in _ENDED else [outcome]
        finally:
            table.close()
    for outcome in (one for one in left if one.state == "failed"):
        end = "\n".join(f"    {line}" for line in end_of(outcome.run.log, _LOG_LINES))
        run, reason = outcome.run, outcome.reason
        log.error("%s failed (%s); the end of %s:\n%s", run.name, reason, run.log, end)
    return [outcome.state for outcome in left]


def _watching(table: LiveTable, stop: StopRequest) -> Look:
    """Shows the runs in progress, and ends them once this process was asked to stop."""

    def look(running: Sequence[Trial]) -> Mapping[str, str]:
        if stop.wanted:
            raise _Stopped
        return table.look(running)

    return look


def _outcome(plan: SweepPlan, ended: Ended) -> RunOutcome:
    """What became of a run that has ended: one that was killed has failed too."""
    outcome = outcome_of(next(run for run in plan.runs if run.name == ended.trial.name))
    if outcome.state in _ENDED or ended.code == PREEMPTED_CODE:
        return outcome
    return replace(outcome, state="failed", reason=f"exit code {ended.code}")


def report_sweep(plan: SweepPlan, write: bool) -> None:
    """Print the table and the result; `write` also sweep.json and the picture."""
    outcomes = [outcome_of(run) for run in plan.runs]
    points, in_bits = point_results(outcomes), compared_in_bits(outcomes)
    width = max(shutil.get_terminal_size(_FALLBACK).columns, _LEAST_WIDTH)
    log.info("\n%s\n", format_points(points, width))
    for sentence in sweep_verdict(points, in_bits, plan.range_of):
        log.info("%s", sentence)
    if write:
        write_record(plan, outcomes)
        _tried(lambda: draw_sweep(points, in_bits, " ".join(plan.words), plan.picture))
        log.info("written: %s, and %s", plan.record, plan.picture.name)


def _tried(draw: Callable[[], None]) -> None:
    """A picture that cannot be drawn changes nothing else."""
    try:
        draw()
    except Exception as error:
        log.error("the picture failed (%s: %s)", type(error).__name__, error)
