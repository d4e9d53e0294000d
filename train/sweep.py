"""Train over a grid of settings and seeds, and say which values are best, and how surely.

    python train/sweep.py demo --set optimizer.lr=3e-4,1e-3,3e-3 --seeds 3
    python train/sweep.py demo --set optimizer.lr=1e-3,3e-3 --set batch_tokens=1024,2048
    python train/sweep.py demo --log-range optimizer.lr 1e-4 1 --points 12
    python train/sweep.py --show runs/sweep_demo

PRESET (or --config FILE) and all other flags are those of train/main.py, for all runs. Each run is
an ordinary run folder in --out. The same command continues a sweep that was stopped or killed, and
takes the runs that have finished. A run that diverges is stopped. --log-range is a range test: one
seed and short runs (a tenth of the steps, 50 to 200), unless --seeds and --steps say otherwise.
At the end --out has sweep.json with all figures, and sweep.png. Exit code 1: a run has failed.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from parallel.ranks import silence_other_ranks, user_errors
from storage.option_values import check_at_least
from storage.script_options import parse_known_options
from train.command_line.parse import parse
from train.command_line.words import taken
from train.experiments.sweeps.grid import (
    Axis,
    GridPoint,
    plan_grid,
    range_axis,
    seeds_of,
    set_axis,
)
from train.experiments.sweeps.sweep_record import SweepPlan, planned_runs, read_plan
from train.experiments.sweeps.sweep_runs import HowToRun, report_sweep, run_sweep
from train.experiments.trial_check import check_trials

_PROG = "train/sweep.py"
_RANGE_PART = 10  # of the steps of a preset, in a range test
_RANGE_STEPS = (50, 200)
log = logging.getLogger("train")


@dataclass(frozen=True)
class SweepOptions:
    """Options of the sweep. All other options are those of the training runs."""

    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting and its values, as optimizer.lr=3e-4,1e-3. Several --set give all combinations."""
    log_range: tuple[str, float, float] | None = None
    """Range test of a setting, from a number to a larger one: optimizer.lr 1e-5 1."""
    points: int = 12
    """Values of the range, each the same times the one before."""
    seeds: str | None = None
    """How many seeds (3: seeds 1, 2 and 3), or a list (4,8,15). Default: 3; 1 in a range test."""
    parallel: int = 1
    """Runs at the same time on this machine. They share out its threads and GPUs."""
    nproc: int = 1
    """Processes (ranks) of each run."""
    shard: str | None = None
    """I/N: make only every N-th run, from the I-th on. For tasks of a SLURM array."""
    out: Path | None = None
    """Folder of the sweep. Default: runs/sweep_PRESET."""
    show: Path | None = None
    """Only print the table of the sweep in this folder as it is now, also while it runs."""

    def __post_init__(self) -> None:
        check_at_least("parallel", self.parallel, 1, 1000)
        check_at_least("nproc", self.nproc, 1, 1000)
        self.part()

    def part(self) -> tuple[int, int]:
        """The first run of this process, and the distance to its next.

        Raises: ValueError if --shard is no share.
        """
        if self.shard is None:
            return 0, 1
        first, slash, count = self.shard.partition("/")
        if not (
            slash and first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)
        ):
            raise ValueError(
                f"shard={self.shard or repr(self.shard)} is no share; give I/N with I from 1 to N, "
                "such as 1/4"
            )
        return int(first) - 1, int(count)

    def axes(self) -> tuple[Axis, ...]:
        """What is varied. Raises: ValueError if it is nothing, or not well described."""
        found = [set_axis(text) for text in self.set]
        if self.log_range is not None:
            found.append(range_axis(*self.log_range, self.points))
        if not found:
            raise ValueError(
                "nothing is varied; give --set optimizer.lr=3e-4,1e-3, or --log-range optimizer.lr "
                "1e-4 1"
            )
        return tuple(found)


def _options_and_words(words: Sequence[str]) -> tuple[SweepOptions, list[str]]:
    """The options of the sweep, and the words that describe its runs.

    Raises: ValueError if they name a run that exists, or what the sweep decides.
    """
    run, _ = taken(words, "--continue")
    if run is not None:
        raise ValueError(
            f"--continue {run} has no meaning here, since a sweep trains runs of its own; give "
            f"--config {run}/config.json to vary that run's settings"
        )
    named = list(words[:1]) if words and not words[0].startswith("-") else []
    rest = [
        word.removeprefix("--") if before == "--set" else word
        for before, word in zip(["", *words], words, strict=False)
    ][len(named) :]
    options, flags = parse_known_options(SweepOptions, rest, prog=_PROG, description=__doc__)
    seed, _ = taken(flags, "--seed")
    if seed is not None:
        raise ValueError(f"--seed {seed} is one seed; give --seeds {seed}, for a list with it")
    return options, [*named, *flags]


def _plan(options: SweepOptions, words: list[str]) -> tuple[SweepPlan, list[GridPoint]]:
    """The runs of the sweep. Raises: ValueError if one of them cannot be."""
    axes = options.axes()
    config, _ = taken(words, "--config")
    preset = words[0] if words and not words[0].startswith("-") else None
    if preset is None and config is None:
        raise ValueError("no preset is given; name one first, such as demo, or give --config FILE")
    is_range = options.log_range is not None
    seeds = seeds_of(options.seeds or ("1" if is_range else "3"))
    name = preset or Path(config or "").stem
    out = options.out or Path("runs") / f"{'range' if is_range else 'sweep'}_{name}"
    if is_range:
        words = _with_few_steps(words, axes, out)
    points = plan_grid(words, axes, seeds, out)
    range_of = axes[0].setting if is_range and len(axes) == 1 else None
    return SweepPlan(out, tuple(words), axes, seeds, range_of, planned_runs(points)), points


def _with_few_steps(words: list[str], axes: Sequence[Axis], out: Path) -> list[str]:
    """The words with the steps of a range test, unless they give some."""
    given, _ = taken(words, "--steps")
    if given is not None or any(axis.setting == "steps" for axis in axes):
        return words
    whole = parse([*words, "--out", str(out / "run")]).steps
    least, most = _RANGE_STEPS
    steps = most if whole is None else min(max(whole // _RANGE_PART, least), most)
    log.info("range test: each run has %d steps; --steps N changes it", steps)
    return [*words, "--steps", str(steps)]


def main() -> None:
    """Plan, check, run and report."""
    silence_other_ranks()
    with user_errors():
        options, words = _options_and_words(sys.argv[1:])
        if options.show is not None:
            report_sweep(read_plan(options.show), write=False)
            return
        plan, points = _plan(options, words)
        trials = [trial for point in points for trial in point.trials]
        steps = check_trials(trials, options.nproc, plan.folder)
        how = HowToRun(options.parallel, options.nproc, *options.part())
        code = run_sweep(plan, points, steps, how)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
