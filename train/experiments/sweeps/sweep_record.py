"""sweep.json: what a sweep has planned and found; and who may write in its folder.

All results in it follow from the folders of the runs. So a sweep that was killed, or was made by
several processes, ends with the same file, but for times and speeds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json
from storage.locks import take_lock
from storage.options.as_words import command
from storage.ownership.folder_lock import FolderLock
from storage.records.json_fields import check_fields
from storage.records.json_values import as_json_value
from train.experiments.paired_test import GroupDifference
from train.experiments.sweeps.grid import Axis, GridPoint
from train.experiments.sweeps.outcomes import (
    ERROR_RATE,
    PlannedRun,
    PointResult,
    RunOutcome,
    compared_in_bits,
    largest_stable,
    point_results,
    rank,
)

_VERSION = 1
_FILE = "sweep.json"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "words": list,
    "settings": list,
    "seeds": list,
    "range_of": (str, type(None)),
    "runs": list,
}
_RUN_FIELDS: dict[str, type | tuple[type, ...]] = {"name": str, "settings": dict, "seed": int}


@dataclass(frozen=True)
class SweepPlan:
    """A sweep as it is planned."""

    folder: Path
    words: tuple[str, ...]
    """What all runs share, as words of train/main.py."""
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    range_of: str | None
    """The setting of a range test, if it is one."""
    runs: tuple[PlannedRun, ...]
    """In the order in which they are made."""

    @property
    def record(self) -> Path:
        """Its sweep.json."""
        return self.folder / _FILE

    @property
    def picture(self) -> Path:
        """Its picture."""
        return self.folder / "sweep.png"


def planned_runs(points: Sequence[GridPoint]) -> tuple[PlannedRun, ...]:
    """The runs of a grid as they are made: all combinations with the first seed, then the next."""
    return tuple(
        PlannedRun(trial.name, trial.config.out, point.settings, trial.config.seed)
        for of_seed in zip(*(point.trials for point in points), strict=True)
        for point, trial in zip(points, of_seed, strict=True)
    )


def read_plan(folder: Path) -> SweepPlan:
    """The plan in the sweep.json of a folder, wherever the folder is now.

    Raises: ValueError if there is none, or it is damaged.
    """
    path = folder / _FILE
    cure = "give the folder of a sweep, such as runs/sweep_demo"
    if not path.is_file():
        raise ValueError(f"{folder} has no {_FILE}; {cure}")
    try:
        record = read_json(path)
        check_fields(path, record, _FIELDS, cure)
        for run in record["runs"]:
            check_fields(path, run, _RUN_FIELDS, cure)
        axes = tuple(Axis(a["setting"], tuple(a["values"])) for a in record["settings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error
    if record["version"] != _VERSION:
        raise ValueError(
            f"{path} has version {record['version']}, and this program reads {_VERSION}; "
            "update Ratchet"
        )
    runs = tuple(
        PlannedRun(run["name"], folder / run["name"], run["settings"], run["seed"])
        for run in record["runs"]
    )
    seeds = tuple(record["seeds"])
    return SweepPlan(folder, tuple(record["words"]), axes, seeds, record["range_of"], runs)


def write_record(plan: SweepPlan, outcomes: Sequence[RunOutcome]) -> None:
    """Write sweep.json: the plan, each run, each combination, and the best."""
    points, in_bits = point_results(outcomes), compared_in_bits(outcomes)
    ended = all(outcome.state in ("finished", "diverged") for outcome in outcomes)
    found = {
        "version": _VERSION,
        "state": "finished" if ended else "unfinished",
        "command": command(("train/main.py", *plan.words)),
        "words": list(plan.words),
        "settings": [asdict(axis) for axis in plan.axes],
        "seeds": list(plan.seeds),
        "range_of": plan.range_of,
        "measure": "bits_per_byte" if in_bits else "val_loss",
        "runs": [_run_values(outcome) for outcome in outcomes],
        "points": [_point_values(point) for point in points],
        "best": _best_values(points),
    }
    if plan.range_of is not None:
        stable = largest_stable(points, plan.range_of)
        found["largest_stable"] = None if stable is None else stable[plan.range_of]
    write_json(plan.record, as_json_value(found))


def _run_values(outcome: RunOutcome) -> dict[str, Any]:
    run, finished = outcome.summary, outcome.state == "finished"
    found = {
        "name": outcome.run.name,
        "settings": outcome.run.settings,
        "seed": outcome.run.seed,
        "state": outcome.state,
        "reason": outcome.reason if outcome.state == "failed" else "",
        "diverged_at": outcome.diverged_at,
    }
    if run is None or not finished:  # what a run had reached when it was stopped is by chance
        return found
    return found | {
        "steps": run.steps_done,
        "tokens": run.tokens,
        "val_loss": run.last_val_loss,
        "best_val_loss": run.best_val_loss,
        "bits_per_byte": run.last_bits_per_byte,
        "train_loss": run.train_loss,
        "tokens_per_second": run.tokens_per_second,
        "train_seconds": run.train_seconds,
    }


def _point_values(point: PointResult) -> dict[str, Any]:
    return {
        "settings": point.settings,
        "finished": len(point.losses),
        "diverged": point.diverged,
        "mean": point.mean,
        "deviation": point.deviation,
    }


def _best_values(points: Sequence[PointResult]) -> dict[str, Any] | None:
    """The best combination, and its difference to each other."""
    ranking = rank(points)
    if ranking is None:
        return None
    others = [
        {"settings": point.settings} | _difference_values(difference)
        for point, difference in zip(ranking.points[1:], ranking.differences, strict=False)
    ]
    best = ranking.points[0]
    return {
        "settings": best.settings,
        "mean": best.mean,
        "deviation": best.deviation,
        "confidence_over_all_comparisons": 1 - ERROR_RATE,
        "others_minus_best": others,
    }


def _difference_values(difference: GroupDifference) -> dict[str, Any]:
    found = difference.interval
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "pairs": found.count,
        "told_apart": difference.told_apart,
    }


@contextmanager
def sweep_lock(folder: Path, shard: str, job: str = "") -> Iterator[None]:
    """Be the only process with this shard of a sweep; an empty `shard` is all of it.

    Raises: ValueError if another process has it, or all where this is a shard, or a shard where
    this is all.
    """
    own = FolderLock(folder / f".lock{shard and '_'}{shard.replace('/', '_of_')}")
    own.take(job)
    try:
        for path in folder.glob(".lock*"):
            clashes = path != own.path and (not shard or path.name == ".lock")
            if clashes and FolderLock(path).is_locked():
                raise ValueError(
                    f"{folder} is being swept by {path.read_text(encoding='utf-8').strip()}; stop "
                    "that sweep or choose another --out"
                )
        yield
    finally:
        own.release()


@contextmanager
def result_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time read all runs and write what follows."""
    with (folder / ".results").open("a+") as file:
        take_lock(file)
        yield
