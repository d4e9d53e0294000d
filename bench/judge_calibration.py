"""How often the judge errs, and what it finds: on recorded runs and by simulation.

    python bench/judge_calibration.py --seeds-of runs/demo_s* --rounding runs/a_s* runs/b_s* \\
        --gain runs/a300_s* runs/a303_s*

--seeds-of: runs that differ in their seed only. Two of them, drawn at random, are a pair without a
difference. --rounding: runs of two settings that only round differently, such as --micro-batch,
told apart by that setting; a pair is exchanged at random, since neither is the better one. --gain:
runs of N steps and of 1 % more, told apart by their steps: what a recipe brings that reaches in N
steps what another reaches in 1.01 N. The judge itself refuses these, as their horizon differs.

Of each, --judgements are made as `train/judge.py` makes them, until they are sure or have --most
pairs. Pairs of --seeds-of are drawn without replacement, so that there are at most half as many as
runs. The others are drawn with replacement from the recorded ones, and once more from a normal
distribution with their mean and deviation. Out: a JSON file, and a table (.md) beside it.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.provenance import RESULTS, provenance
from storage.atomic import write_json, write_text
from storage.option_values import check_at_least
from storage.script_options import parse_options
from storage.user_errors import exit_on_user_error
from train.experiments.intervals import Interval, mean_interval
from train.experiments.looks import LookPlan, looks_until
from train.experiments.paired_test import pairs_needed
from train.experiments.run_pairs import RunEnd, RunPairs, pair_runs
from train.experiments.verdict import judge_pairs
from train.reporting.run_folders import find_runs, read_runs
from train.reporting.run_summary import RunSummary

_SIMULATED = 10_000  # judgements of each distribution
_VALIDATIONS = 3  # at the end of a run, whose mean is tried as a measure
_LEAST_RUNS = 6


@dataclass(frozen=True)
class Arguments:
    """Measure the judge's false alarms, and how often it finds a planted gain."""

    seeds_of: tuple[Path, ...] = ()
    """Runs that differ in their seed only."""
    rounding: tuple[Path, ...] = ()
    """Runs of two settings that round differently, with the same seeds."""
    gain: tuple[Path, ...] = ()
    """Runs of N steps, and of the same seeds with 1 % more steps."""
    judgements: int = 100
    """Judgements of each kind."""
    most: int = 20
    """Pairs after which a judgement gives up."""
    seed: int = 0
    """Seed of the draws."""
    smallest: float = 0.002
    """As --smallest of train/judge.py."""
    results: Path = RESULTS / "judge_calibration.json"
    """Result file; the table (.md) is written beside it."""

    def __post_init__(self) -> None:
        check_at_least("judgements", self.judgements, 1)
        check_at_least("most", self.most, 2)


def _read(paths: Sequence[Path]) -> list[RunSummary]:
    """The finished runs. Raises: ValueError if one cannot be read."""
    runs, damaged = read_runs(find_runs(paths)[0])
    if damaged:
        raise ValueError("; ".join(f"{path}: {why}" for path, why in damaged.items()))
    return [run for run in runs if run.state == "finished"]


def _two_groups(runs: Sequence[RunSummary], setting: str) -> RunPairs:
    """The pairs of two values of a setting; A has the one that comes first.

    Raises: ValueError if there are not two.
    """
    values = list(dict.fromkeys(run.settings[setting] for run in runs))
    if len(values) != 2:
        raise ValueError(f"{setting} has the values {values}; give runs with two of them")
    a, b = ([run for run in runs if run.settings[setting] == value] for value in values)
    shared = {run.seed for run in a} & {run.seed for run in b}
    a, b = ([run for run in side if run.seed in shared] for side in (a, b))
    return pair_runs(a, b, same_horizon=False)


def _judged(pairs: RunPairs, plan: LookPlan, smallest: float) -> tuple[str, int]:
    """The last verdict of a judgement that adds pairs until it is settled, and its pairs."""
    word = ""
    for look in plan.looks:
        verdict = judge_pairs(replace(pairs, a=pairs.a[:look], b=pairs.b[:look]), plan, smallest)
        word = verdict.word
        if verdict.settled:
            return word, look
    return word, plan.looks[-1]


def _of_seeds(runs: Sequence[RunSummary], draw: np.random.Generator) -> RunPairs:
    """The runs in pairs at random."""
    order = draw.permutation(len(runs))
    half = len(runs) // 2
    whole = pair_runs(runs, runs)
    a, b = (tuple(whole.a[n] for n in part) for part in (order[:half], order[half : 2 * half]))
    return replace(whole, a=a, b=b)


def _resampled(pairs: RunPairs, draw: np.random.Generator, most: int, exchange: bool) -> RunPairs:
    """Pairs drawn with replacement; `exchange`: with A and B exchanged in half of them."""
    chosen = draw.integers(len(pairs.a), size=most)
    both = [(pairs.a[n], pairs.b[n]) for n in chosen]
    if exchange:
        both = [pair[:: 1 - 2 * int(draw.integers(2))] for pair in both]
    return replace(pairs, a=tuple(x for x, _ in both), b=tuple(y for _, y in both))


def _normal(pairs: RunPairs, draw: np.random.Generator, most: int, exchange: bool) -> RunPairs:
    """Pairs whose difference is drawn from the normal distribution of the recorded ones."""
    found = mean_interval(_differences(pairs))
    mean = 0.0 if exchange else found.mean
    a = pairs.a[0]
    drawn = draw.normal(mean, found.deviation, most)
    b = tuple(RunEnd(pairs.b[0].run, a.loss + float(d), False) for d in drawn)
    return replace(pairs, a=(a,) * most, b=b)


def _differences(pairs: RunPairs) -> list[float]:
    return [y.loss - x.loss for x, y in zip(pairs.a, pairs.b, strict=True)]


def _tally(kind: str, recorded: int, judgements: Sequence[tuple[str, int]]) -> dict[str, Any]:
    words = Counter(word for word, _ in judgements)
    return {
        "kind": kind,
        "recorded": recorded,
        "judgements": len(judgements),
        **{word: words[word] for word in ("better", "worse", "not told apart")},
        "the same to the bit": words["the same to the bit"],
        "mean_pairs": fmean(pairs for _, pairs in judgements),
    }


def _measures(kind: str, pairs: RunPairs) -> Iterator[dict[str, Any]]:
    """How well each measure shows the difference of the recorded pairs."""
    both = list(zip(pairs.a, pairs.b, strict=True))

    def late(end: RunEnd) -> float:
        return fmean(end.run.val_curve.loss[-_VALIDATIONS:])

    plan = looks_until(len(both), 0.05)
    train = judge_pairs(pairs, plan).train_difference
    found: dict[str, Interval] = {
        "last validation": mean_interval(_differences(pairs)),
        f"mean of the last {_VALIDATIONS} validations": mean_interval(
            [late(y) - late(x) for x, y in both]
        ),
    }
    if train is not None:
        found["training loss of the last tenth, same steps"] = train.interval
    for measure, interval in found.items():
        yield {
            "kind": kind,
            "measure": measure,
            "pairs": interval.count,
            "mean": interval.mean,
            "deviation": interval.deviation,
            "pairs_needed": pairs_needed(interval.mean, interval.deviation),
        }


def _simulated(most: int, draw: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The share of judgements that tell apart what does not differ, for differences of a form."""
    from scipy.stats import ttest_1samp

    plan, shape = looks_until(most, 0.05), (_SIMULATED, most)
    forms = {
        "normal": lambda: draw.standard_normal(shape),
        "t of 3 degrees of freedom": lambda: draw.standard_t(3, shape),
        "normal, one in ten five times as large": lambda: (
            draw.standard_normal(shape) * np.where(draw.random(shape) < 0.1, 5, 1)
        ),
        "of two losses with a long tail": lambda: (
            -np.diff(draw.exponential(1, (2, *shape)), axis=0)[0]
        ),
        "skewed (exponential; not without a difference)": lambda: draw.exponential(1, shape) - 1,
    }
    for form, drawn in forms.items():
        values = drawn()
        apart = np.zeros(_SIMULATED, bool)
        for look in plan.looks:
            test: Any = ttest_1samp(values[:, :look], 0.0, axis=1)
            apart |= test.pvalue < plan.error_rate_of_look
        yield {"form": form, "judgements": _SIMULATED, "told_apart": float(apart.mean())}


def _calibrate(arguments: Arguments) -> dict[str, Any]:
    """All tables. Raises: ValueError if runs do not compare."""
    draw = np.random.default_rng(arguments.seed)
    count, most, smallest = arguments.judgements, arguments.most, arguments.smallest
    tallies: list[dict[str, Any]] = []
    measures: list[dict[str, Any]] = []
    if arguments.seeds_of:
        runs = _read(arguments.seeds_of)
        if len(runs) < _LEAST_RUNS:
            raise ValueError(f"{len(runs)} finished runs in --seeds-of; give {_LEAST_RUNS} or more")
        plan = looks_until(min(most, len(runs) // 2), 0.05)
        judged = [_judged(_of_seeds(runs, draw), plan, smallest) for _ in range(count)]
        tallies.append(_tally("two seeds of one setting", len(runs), judged))
    kinds = (("rounding", "micro_batch", arguments.rounding), ("gain", "steps", arguments.gain))
    for kind, setting, paths in kinds:
        if not paths:
            continue
        pairs = _two_groups(_read(paths), setting)
        values = [end.run.settings[setting] for end in (pairs.a[0], pairs.b[0])]
        name = f"{kind}: {setting} {values[0]} and {values[1]}"
        measures += _measures(name, pairs)
        plan, exchange = looks_until(most, 0.05), kind == "rounding"
        for how, sample in (("resampled", _resampled), ("normal", _normal)):
            judged = [
                _judged(sample(pairs, draw, most, exchange), plan, smallest) for _ in range(count)
            ]
            tallies.append(_tally(f"{name}, {how}", len(pairs.a), judged))
    return {
        "arguments": {k: str(v) for k, v in asdict(arguments).items() if k in ("most", "smallest")},
        "judgements": tallies,
        "measures": measures,
        "simulated": list(_simulated(most, draw)),
    }


def _markdown(found: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "Judgements until sure, at an error rate of 5 % over all looks (recorded: runs or pairs; "
        "pairs: mean until it was sure):",
        "",
        "| pairs of | recorded | judgements | better | worse | not told apart | the same | pairs |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in found["judgements"]:
        numbers = (row[k] for k in ("better", "worse", "not told apart", "the same to the bit"))
        cells = [row["kind"], row["recorded"], row["judgements"], *numbers]
        lines.append(f"| {' | '.join(map(str, cells))} | {row['mean_pairs']:.1f} |")
    lines += [
        "",
        "What shows the difference best (nats per token; pairs needed: to find it in nine of ten "
        "judgements of one look):",
        "",
        "| pairs | measure | recorded | mean B - A | deviation | pairs needed |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for row in found["measures"]:
        lines.append(
            f"| {row['kind']} | {row['measure']} | {row['pairs']} | {row['mean']:+.5f} | "
            f"{row['deviation']:.5f} | {row['pairs_needed'] or '-'} |"
        )
    lines += [
        "",
        "Simulated differences with a mean of zero:",
        "",
        "| differences | judgements | told apart |",
        "| --- | --: | --: |",
    ]
    for row in found["simulated"]:
        lines.append(f"| {row['form']} | {row['judgements']:,} | {100 * row['told_apart']:.1f} % |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the judgements and write the tables."""
    arguments = parse_options(Arguments, description=__doc__)
    head = provenance(["numpy", "scipy"])
    with exit_on_user_error(ValueError, OSError):
        found = _calibrate(arguments)
        write_json(arguments.results, {**head, **found})
        text = _markdown(found)
        write_text(arguments.results.with_suffix(".md"), text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
