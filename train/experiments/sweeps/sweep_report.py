"""The table of a sweep and its result in sentences."""

from collections.abc import Sequence
from statistics import fmean

from storage.terminal.printable import printable
from storage.terminal.short_times import short_time
from train.experiments.intervals import mean_interval
from train.experiments.paired_test import GroupDifference
from train.experiments.sweeps.grid import point_text, setting_text
from train.experiments.sweeps.outcomes import (
    ERROR_RATE,
    PointResult,
    Ranking,
    RunOutcome,
    TrialState,
    largest_stable,
    rank,
)
from train.reporting.run_summary import RunSummary
from train.reporting.run_table import blocks

_NONE = "-"
_STATES: tuple[TrialState, ...] = ("diverged", "failed", "interrupted", "running", "waiting")


def measure_name(in_bits: bool) -> str:
    """What is compared, with its unit."""
    return "bits per byte" if in_bits else "final validation loss (nats per token)"


def format_points(points: Sequence[PointResult], width: int) -> str:
    """The table: a row for each combination, with mean ± deviation over its seeds."""
    settings = list(points[0].settings)
    names = [settings[0], *(_cell(point, settings[0]) for point in points)]
    columns = [[key, *(_cell(point, key) for point in points)] for key in settings[1:]]
    columns.append(["seeds", *(_seeds(point) for point in points)])
    columns.append(["final val loss", *(_spread(point, "last_val_loss") for point in points)])
    columns.append(["bits/byte", *(_spread(point, "last_bits_per_byte") for point in points)])
    columns.append(["tokens/s", *(_mean(point, "tokens_per_second") for point in points)])
    columns.append(["time", *(_time(point) for point in points)])
    if any(_others(point) for point in points):
        columns.append(["other runs", *(_others(point) for point in points)])
    table = "\n\n".join(blocks(names, columns, width))
    return f"mean ± standard deviation over the seeds that have finished:\n{table}"


def _cell(point: PointResult, key: str) -> str:
    return printable(setting_text(point.settings[key]))


def _seeds(point: PointResult) -> str:
    done, count = len(point.losses), len(point.outcomes)
    return str(done) if done == count else f"{done} of {count}"


def _finished(point: PointResult) -> list[RunSummary]:
    return [o.summary for o in point.outcomes if o.state == "finished" and o.summary is not None]


def _values(point: PointResult, name: str) -> list[float]:
    values = (getattr(run, name) for run in _finished(point))
    return [value for value in values if value is not None]


def _spread(point: PointResult, name: str) -> str:
    values = _values(point, name)
    if not values:
        return _NONE
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{fmean(values):.4f} ± {mean_interval(values).deviation:.4f}"


def _mean(point: PointResult, name: str) -> str:
    values = _values(point, name)
    return f"{fmean(values):,.0f}" if values else _NONE


def _time(point: PointResult) -> str:
    values = _values(point, "train_seconds")
    return short_time(fmean(values)) if values else _NONE


def _others(point: PointResult) -> str:
    """The runs that have not finished: 1 diverged at step 30, 2 waiting."""
    parts = []
    for state in _STATES:
        found = [outcome for outcome in point.outcomes if outcome.state == state]
        steps = sorted({o.diverged_at for o in found if o.diverged_at is not None})
        where = f" at step {', '.join(map(str, steps[:3]))}" if steps else ""
        parts += [f"{len(found)} {state}{where}"] if found else []
    return ", ".join(parts)


def sweep_verdict(points: Sequence[PointResult], in_bits: bool, range_of: str | None) -> list[str]:
    """The result in sentences. `range_of`: the setting of a range test, if it is one."""
    found = []
    if range_of is not None:
        stable = largest_stable(points, range_of)
        found.append(
            f"largest {range_of} below the first that diverged: "
            f"{'none' if stable is None else setting_text(stable[range_of])}"
        )
    ranking = rank(points)
    if ranking is None:
        return [*found, "no best: no combination has finished with all its seeds"]
    best = ranking.points[0]
    found.append(
        f"best: {point_text(best.settings)}, {measure_name(in_bits)} {best.mean or 0.0:.4f}"
        f"{_over(best)}"
    )
    found += _comparison(ranking)
    if len({run.data_fingerprint for point in ranking.points for run in _finished(point)}) > 1:
        found.append(
            "validated on different data: the figures compare only if their text is the same (for "
            'mixtures, give one --data and try weights from step 1: --set "data_weights_at=1 0.5 '
            '0.5,1 0.9 0.1")'
        )
    found += [note for key in best.settings if (note := _at_edge(points, best, key))]
    left_out = len(points) - len(ranking.points)
    if left_out:
        found.append(
            f"not compared, since not all their runs have finished: {left_out} of {len(points)}"
        )
    return found


def _over(point: PointResult) -> str:
    if point.deviation is None:
        return " (one seed)"
    return f" ± {point.deviation:.4f} (standard deviation over {len(point.losses)} seeds)"


def _comparison(ranking: Ranking) -> list[str]:
    """Whether the best is told apart from the second, and from which others it is not."""
    others = ranking.points[1:]
    if not others:
        return []
    second = others[0]
    if not ranking.differences:
        gap = (second.mean or 0.0) - (ranking.points[0].mean or 0.0)
        return [
            f"second: {point_text(second.settings)}, {gap:.4f} higher; one seed does not show "
            "whether that is noise: --seeds 3 does"
        ]
    first = ranking.differences[0]
    confidence = f"{100 * (1 - ERROR_RATE):.0f} %"
    told = "told apart from" if first.told_apart else "not told apart from"
    sentence = (
        f"{told} the second, {point_text(second.settings)}, which is {_interval(first)} higher "
        f"({confidence} interval of {first.interval.count} pairs of seeds"
        f"{f', over all {len(others)} comparisons' if len(others) > 1 else ''})"
    )
    alike = [
        point_text(point.settings)
        for point, difference in zip(others[1:], ranking.differences[1:], strict=True)
        if not difference.told_apart
    ]
    return [sentence, *([f"nor from: {'; '.join(alike)}"] if alike else [])]


def _interval(difference: GroupDifference) -> str:
    found = difference.interval
    return f"{found.mean:.4f} ± {found.half_width:.4f}"


def _at_edge(points: Sequence[PointResult], best: PointResult, key: str) -> str:
    """A note if the best value of a setting is the smallest or largest number tried."""
    values = {point.settings[key] for point in points}
    numbers = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
    if (
        len(numbers) < len(values)
        or len(numbers) < 2
        or best.settings[key] not in (numbers[0], numbers[-1])
    ):
        return ""
    which = "smallest" if best.settings[key] == numbers[0] else "largest"
    return f"{key}={setting_text(best.settings[key])} is the {which} tried: the best may be beyond"


def ended_line(outcome: RunOutcome, number: int, count: int) -> str:
    """A line for a run that has ended."""
    run = outcome.summary
    parts = [f"{number} of {count}", outcome.run.name, outcome.state]
    if outcome.state == "diverged":
        parts[-1] += f" at step {outcome.diverged_at}"
    elif run is not None and run.last_val_loss is not None:
        parts.append(f"val loss {run.last_val_loss:.4f}")
    if run is not None:
        parts.append(short_time(run.train_seconds))
    return "  ".join(parts)
