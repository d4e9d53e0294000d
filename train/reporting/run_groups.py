"""Runs that differ in their seed only: mean and deviation of what they have reached."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from train.reporting.run_summary import RunSummary
from train.reporting.run_table import blocks, score_tags, short_name
from train.reporting.setting_differences import short_value, training_differences

_SEED = "seed"


@dataclass(frozen=True)
class _RunGroup:
    """Runs with the same settings but for the seed, and the same data."""

    runs: tuple[str, ...]
    """Their names."""
    settings: dict[str, str]
    """What tells this group from the others."""
    means: dict[str, float]
    """Mean of each figure, if all runs have it."""
    deviations: dict[str, float]
    """Sample standard deviation of each figure, if there are several runs."""


def group_runs(runs: Sequence[RunSummary]) -> list[_RunGroup]:
    """The groups, in the order of their first runs."""
    found = training_differences(runs)
    found.pop(_SEED, None)
    members: dict[str, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        key = [*(values[number] for values in found.values()), *run.validation]
        members[json.dumps(key)].append(number)
    return [
        _group(
            [runs[n] for n in numbers],
            {key: short_value(values[numbers[0]]) for key, values in found.items()},
            score_tags(runs, every=False),
        )
        for numbers in members.values()
    ]


def _group(runs: Sequence[RunSummary], settings: dict[str, str], tags: list[str]) -> _RunGroup:
    figures: dict[str, list[float | None]] = {
        "best val": [run.best_val_loss for run in runs],
        "last val": [run.last_val_loss for run in runs],
        "bits/byte": [run.best_bits_per_byte for run in runs],
    }
    for tag in tags:
        figures[tag] = [run.scores[tag].value if tag in run.scores else None for run in runs]
    whole = {
        name: known
        for name, values in figures.items()
        if len(known := [value for value in values if value is not None]) == len(runs)
    }
    return _RunGroup(
        runs=tuple(run.name for run in runs),
        settings=settings,
        means={name: fmean(values) for name, values in whole.items()},
        deviations={name: stdev(values) for name, values in whole.items() if len(values) > 1},
    )


def format_groups(groups: Sequence[_RunGroup], width: int) -> str:
    """A row for each group: its settings, and mean ± standard deviation of its runs."""
    names = ["group", *(short_name(group.runs[0]) for group in groups)]
    columns = [["runs", *(str(len(group.runs)) for group in groups)]]
    columns += [[key, *(g.settings[key] for g in groups)] for key in groups[0].settings]
    for figure in dict.fromkeys(name for group in groups for name in group.means):
        columns.append([figure, *(_figure(group, figure) for group in groups)])
    table = "\n\n".join(blocks(names, columns, width))
    return f"mean ± standard deviation over the runs that differ in their seed only:\n{table}"


def _figure(group: _RunGroup, name: str) -> str:
    if name not in group.means:
        return "-"
    deviation = group.deviations.get(name)
    return f"{group.means[name]:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
