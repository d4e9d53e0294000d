"""What the runs of bench/ladder.py foretell of a size, and what that size then has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bench.ladder_fit import (
    LEAST_SIZES,
    Line,
    Point,
    fit_line,
    irreducible_loss,
    scatter_of,
)
from bench.ladder_plan import Rung
from model.config import GPTConfig
from model.estimates.flops import training_flops_per_token
from train.experiments.taken_runs import check_taken
from train.reporting.run_folders import find_runs, read_runs
from train.reporting.run_summary import RunSummary, summarize_run


@dataclass(frozen=True)
class _Forecast:
    """The loss of a size that is not trained yet, from one draw of the smaller ones."""

    seed: int | None
    """None: from the runs of all seeds together."""
    line: Line
    flops: float
    loss: float
    """Nats per token."""
    half_width: float
    """Of the 95 % interval, for the mean loss of as many runs as the draw has of each size."""


@dataclass(frozen=True)
class Check:
    """The mean loss of the largest small size, foretold from those below it: does a line hold?"""

    foretold: float
    half_width: float
    measured: float

    @property
    def error(self) -> float:
        """By how much the forecast is too high, in nats."""
        return self.foretold - self.measured


@dataclass(frozen=True)
class Ladder:
    """The losses of the small sizes, by size and seed, and what they foretell."""

    losses: tuple[tuple[float, ...], ...]
    forecasts: tuple[_Forecast, ...]
    """One for each seed, and the last from all of them."""
    check: Check | None
    """None if there are too few sizes below the largest, or none of them has two runs."""


def check_found(rung: Rung, fingerprint: str) -> None:
    """Raises: ValueError if runs that are there already have other settings, data or validation."""
    check_taken(rung.trials)
    for trial in rung.trials:
        if not trial.folder.is_finished():
            continue
        run = summarize_run(trial.config.out, trial.name)
        wanted = trial.config.eval.validated_tokens
        if run.data_fingerprint != fingerprint or run.settings["eval.val_tokens"] != wanted:
            raise ValueError(
                f"{run.path} was trained on or validated on other text; give another --out, or "
                "move that run away"
            )


def losses_of(rung: Rung) -> tuple[float, ...]:
    """The last validation loss of each run of a size."""
    return tuple(_loss(_summary(rung, number)) for number in range(len(rung.trials)))


def foretold(small: Sequence[Rung], flops: float) -> Ladder:
    """The loss that the small sizes foretell of a training with that compute."""
    losses = tuple(losses_of(rung) for rung in small)
    compute = [rung.flops for rung in small]
    floor = irreducible_loss(_bytes_per_token(_summary(small[0], 0)))
    scatter = scatter_of(dict(zip(compute, losses, strict=True)), floor)
    found: list[_Forecast] = []
    for number, trial in enumerate(small[0].trials):
        points = [Point(c, own[number]) for c, own in zip(compute, losses, strict=True)]
        line = fit_line(points, floor, scatter)
        found.append(_forecast(trial.config.seed, line, flops, 1))
    means = [Point(c, fmean(own)) for c, own in zip(compute, losses, strict=True)]
    seeds = len(small[0].trials)
    found.append(_forecast(None, fit_line(means, floor, scatter, seeds), flops, seeds))
    return Ladder(losses, tuple(found), _checked(dict(zip(compute, losses, strict=True)), floor))


def line_of_runs(paths: Sequence[Path]) -> tuple[Line, list[Point], Check | None]:
    """The line through finished runs of several sizes, their points, and whether it holds so far.

    Raises: ValueError if they do not compare, are not finished, or are too few.
    """
    folders, others = find_runs(paths)
    if not folders:
        raise ValueError(f"{others[0]} is no run and holds none; give run folders")
    runs, damaged = read_runs(folders)
    for path, reason in damaged.items():
        raise ValueError(f"{path} cannot be read ({reason}); leave it out")
    for run in runs:
        if run.state != "finished":
            raise ValueError(f"{run.path} is {run.state}; give finished runs")
        if run.validation != runs[0].validation:
            raise ValueError(
                f"{run.path} is validated on other tokens than {runs[0].path}; give runs of one "
                "data set and --eval.val-tokens"
            )
    points = sorted((Point(_flops(run), _loss(run)) for run in runs), key=lambda p: p.flops)
    sizes: dict[float, list[float]] = {}
    for point in points:
        sizes.setdefault(point.flops, []).append(point.loss)
    floor = irreducible_loss(_bytes_per_token(runs[0]))
    means = [Point(flops, fmean(losses)) for flops, losses in sizes.items()]
    seeds = max(1, len(points) // len(means))
    line = fit_line(means, floor, scatter_of(sizes, floor), seeds)
    return line, points, _checked(sizes, floor)


def _checked(losses: Mapping[float, Sequence[float]], floor: tuple[float, float]) -> Check | None:
    """The largest size foretold from the others, of losses by compute in ascending order."""
    *below, largest = losses
    if len(below) < LEAST_SIZES or max(len(losses[flops]) for flops in below) == 1:
        return None
    seeds = len(losses[largest])
    scatter = scatter_of({flops: losses[flops] for flops in below}, floor)
    line = fit_line([Point(c, fmean(losses[c])) for c in below], floor, scatter, seeds)
    half_width = line.half_width(largest, seeds)
    return Check(line.loss_at(largest), half_width, fmean(losses[largest]))


def _forecast(seed: int | None, line: Line, flops: float, seeds: int) -> _Forecast:
    return _Forecast(seed, line, flops, line.loss_at(flops), line.half_width(flops, seeds))


def _summary(rung: Rung, number: int) -> RunSummary:
    trial = rung.trials[number]
    return summarize_run(trial.config.out, trial.name)


def _flops(run: RunSummary) -> float:
    """FLOPs of a finished training."""
    shape = {
        key.removeprefix("model."): value
        for key, value in run.settings.items()
        if key.startswith("model.")
    }
    return run.tokens * training_flops_per_token(GPTConfig(**shape))


def _loss(run: RunSummary) -> float:
    if run.last_val_loss is None:
        raise ValueError(f"{run.path} has no validation loss; train it with --eval.every 100")
    return run.last_val_loss


def _bytes_per_token(run: RunSummary) -> float:
    """Bytes of a token of the validation text."""
    if not run.last_bits_per_byte:
        raise ValueError(f"{run.path} has no bits per byte, from which E follows; give other runs")
    return _loss(run) / (math.log(2) * run.last_bits_per_byte)
