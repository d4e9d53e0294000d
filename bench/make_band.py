"""Make a band: what finished runs that differ in the seed only have reached, step by step.

    python bench/make_band.py runs/demo_* --out bench/bands/demo.json --made-by "make run"

Further runs of a seed that is there already show how far rounding moves a run: with another
micro-batch, or on other numbers of processes and threads. They need not be finished. The trainer
compares a run of the same recipe with the band: `--guard.band auto` finds those in bench/bands/.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import tyro

from bench.provenance import commit_of_sources
from storage.json_lines import read_metrics
from storage.option_values import check_output_file
from storage.run_folder import RunFolder
from storage.script_options import parse_options
from storage.user_errors import exit_on_user_error
from train.checkpoints.run_facts import run_facts
from train.guards.band.marks import FIGURES, TRAIN_LOSS, digest_at, figures_at, marked_steps
from train.guards.band.recipe import RunFacts, recipe_differences
from train.guards.band.record import LEAST_SEEDS, Band, SeedCurve, Values, write_band
from train.presets import PRESETS
from train.reporting.run_folders import find_runs

_SHOWN = 4  # differences of a run that are named
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Make a band from runs that differ in the seed only."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, or folders that hold some."""
    out: Path
    """File of the band, such as bench/bands/demo.json; its name is the band's name."""
    made_by: str = ""
    """The command that makes such a run. Default: that of the preset of the band's name."""


@dataclass(frozen=True)
class MeasuredRun:
    """A run, and what it has reached at the marks."""

    path: Path
    facts: RunFacts
    finished: bool
    curve: SeedCurve


def measured_run(path: Path) -> MeasuredRun:
    """What a run has reached. Raises: ValueError if its config.json is damaged."""
    folder = RunFolder(path)
    facts = run_facts(folder.read_config())
    lines = {line["step"]: line for line in read_metrics(folder.metrics)}
    marks = marked_steps(facts.steps)
    rows = [figures_at(mark, lines) for mark in marks]
    figures = {figure: [row.get(figure) for row in rows] for figure in FIGURES}
    digests = [digest_at(mark, lines) for mark in marks]
    return MeasuredRun(path, facts, folder.is_finished(), SeedCurve(figures, digests))


def band_of(runs: Sequence[MeasuredRun], name: str, command: str) -> Band:
    """The band of the runs; of each seed the first finished one, and the others beside it.

    Raises: ValueError if they differ in more than the seed, or are too few.
    """
    first = runs[0]
    for run in runs[1:]:
        _check_alike(first, run)
    own: dict[int, MeasuredRun] = {}
    others = []
    for run in runs:
        if run.finished and run.facts.seed not in own:
            own[run.facts.seed] = run
        else:
            others.append(run)
    if lost := [str(run.path) for run in others if run.facts.seed not in own]:
        raise ValueError(
            f"{lost[0]} is not finished, and there is no finished run of its seed; continue it, or "
            "leave it out"
        )
    if len(own) < LEAST_SEEDS:
        raise ValueError(
            f"there are {len(own)} seeds, and a band needs {LEAST_SEEDS}: fewer say little about "
            "a deviation; make runs with other --seed"
        )
    for run in own.values():
        _check_whole(run)
    kinds = {str(run.facts.made) for run in own.values()}
    if len(kinds) > 1:
        raise ValueError(
            f"the runs were computed by {' and '.join(sorted(kinds))}; make all on one kind"
        )
    compared = [_differences(run.curve, own[run.facts.seed].curve) for run in others]
    # The same bits say nothing of rounding: such as two ranks with the micro-batch of one.
    moved = [one for one in compared if one is not None]
    facts = first.facts
    return Band(
        name=name,
        command=command,
        data_fingerprint=facts.data_fingerprint,
        recipe=facts.recipe,
        steps=facts.steps,
        val_tokens=facts.val_tokens,
        made={**facts.made, "commit": commit_of_sources()},
        marks=marked_steps(facts.steps),
        seeds={seed: run.curve for seed, run in own.items()},
        rounding=_rounding(moved),
        rounding_counts=_rounding_counts(moved, len(marked_steps(facts.steps))) if moved else (),
    )


def _check_alike(first: MeasuredRun, run: MeasuredRun) -> None:
    """Raises: ValueError naming what differs, if it is more than the seed."""
    found = recipe_differences(first.facts.recipe, run.facts.recipe)
    for what in ("steps", "data_fingerprint", "val_tokens"):
        before, now = getattr(first.facts, what), getattr(run.facts, what)
        if before != now:
            found.append(f"{what}: {before} -> {now}")
    for what in ("device", "dtype"):
        before, now = first.facts.made[what], run.facts.made[what]
        if before != now:
            found.append(f"{what}: {before} -> {now}")
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(
            f"{first.path} and {run.path} differ in more than the seed "
            f"({'; '.join(found[:_SHOWN])}{more}); leave one of them out"
        )


def _check_whole(run: MeasuredRun) -> None:
    """Raises: ValueError if the run has no training loss at some mark but the first."""
    for mark, loss in zip(
        marked_steps(run.facts.steps), run.curve.figures[TRAIN_LOSS], strict=True
    ):
        if mark and loss is None:
            raise ValueError(
                f"{run.path} has no finite training loss in every step before {mark}; leave it out"
            )


def _differences(run: SeedCurve, own: SeedCurve) -> Mapping[str, Values] | None:
    """What a run differs by from another of its seed; None if both have the same bits."""
    found = {
        figure: [
            None if a is None or b is None else a - b
            for a, b in zip(run.figures[figure], own.figures[figure], strict=True)
        ]
        for figure in FIGURES
    }
    return found if any(value for values in found.values() for value in values) else None


def _rounding(moved: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    """Root mean square of the differences at each mark, over the runs that have reached it."""
    found: dict[str, Values] = {}
    for figure in FIGURES if moved else ():
        columns = zip(*(one[figure] for one in moved), strict=True)
        known = [[value for value in column if value is not None] for column in columns]
        found[figure] = [math.sqrt(fmean(v * v for v in row)) if row else None for row in known]
    return found


def _rounding_counts(moved: Sequence[Mapping[str, Values]], marks: int) -> list[int]:
    reached = [[one[TRAIN_LOSS][n] is not None for one in moved] for n in range(marks)]
    counts = [sum(row) for row in reached]
    return [len(moved) if number == 0 else count for number, count in enumerate(counts)]


def _report(band: Band) -> str:
    """A row for each mark: mean and deviation over the seeds."""
    rows = [
        f"{'step':>7}  {'training loss':>16}  {'log gradient norm':>18}  {'validation loss':>16}"
    ]
    for number, mark in enumerate(band.marks):
        cells = []
        for figure in FIGURES:
            spread = band.spread(figure, number)
            cells.append("" if spread is None else f"{spread.mean:.4f} ± {spread.deviation:.4f}")
        rows.append(f"{mark:>7}{''.join(f'{cell:>18}' for cell in cells)}")
    head = (
        f"{band.name}: mean ± deviation over {len(band.seeds)} seeds; "
        f"{max(band.rounding_counts, default=0)} runs show the rounding"
    )
    return "\n".join([head, *rows])


def _command(arguments: Arguments) -> str:
    """The command that makes such a run. Raises: ValueError if it is not known."""
    name = arguments.out.stem
    if arguments.made_by or name in PRESETS:
        return arguments.made_by or f"python train/main.py {name}"
    raise ValueError(f"{name} is no preset; give --made-by with the command that makes such a run")


def main() -> None:
    """Read the runs, make the band, write it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_options(Arguments, description=__doc__)
    with exit_on_user_error(ValueError, OSError):
        check_output_file("--out", arguments.out)
        paths, nothing = find_runs(arguments.runs)
        if nothing:
            raise ValueError(f"{nothing[0]} is no run and holds none; give run folders")
        if not paths:
            raise ValueError("no run is named; give run folders, such as runs/demo_*")
        name = arguments.out.stem
        command = _command(arguments)
        band = band_of([measured_run(path) for path in paths], name, command)
        write_band(arguments.out, band)
        log.info("%s", _report(band))


if __name__ == "__main__":
    main()
