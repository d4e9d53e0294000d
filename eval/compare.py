"""Compares two checkpoints item by item with paired tests.

    python eval/compare.py results/a results/b

Reads two folders (or two .npz files) written by eval/main.py --items-out. Prints a table of
differences, B minus A; `--json FILE` also writes it. Paired tests detect smaller differences than
two scores do: the 95 % interval of a HellaSwag score is about 0.9 points on either side. McNemar's
exact test counts the items that only one checkpoint got right. The bootstrap resamples items and
keeps both results of an item together.
"""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

from eval.result import ItemTable, load_items
from parallel.ranks import silence_other_ranks, user_errors
from storage.script_options import parse_options
from storage.terminal.json_output import check_json_target, write_json_target

_MAX_DRAWS = 1 << 22  # random numbers in one array: 16 MB of int32

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Arguments:
    """Compare the results of two checkpoints on the same items."""

    a: tyro.conf.Positional[Path]
    """Folder with .npz files, or one .npz file."""
    b: tyro.conf.Positional[Path]
    """The other folder or file. Differences are B minus A."""
    json: Path | None = None
    """JSON file to write the table to; -: standard output."""
    resamples: int = 10_000
    """Number of bootstrap resamples."""
    confidence: float = 0.95
    """Confidence level of the bootstrap interval."""
    seed: int = 1
    """Random seed of the bootstrap."""

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"resamples={self.resamples} must be 1 or more and "
                f"confidence={self.confidence} between 0 and 1"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative; use 0 or more")
        check_json_target(self.json)


@dataclass(frozen=True)
class Comparison:
    """One number of both checkpoints. The fields are the keys of --json."""

    tag: str
    """Task and accuracy; or task/loss, in nats per word or whatever else the task divides by."""
    items: int
    a: float
    b: float
    low: float
    """Lower bound of the bootstrap interval of the difference."""
    high: float
    only_a: int | None
    """Number of items that only A got right; None for a loss."""
    only_b: int | None
    p: float | None
    """Exact two-sided p-value of McNemar's test; None for a loss."""

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: a binomial test with probability 1/2.

    Source: https://doi.org/10.1007/BF02295996
    """
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**n)  # integers up to this division, so exact for any n


def bootstrap_interval(
    difference: np.ndarray, weight: np.ndarray, arguments: Arguments
) -> tuple[float, float]:
    """Bootstrap percentile interval of sum(difference) / sum(weight). Shapes (items,)."""
    random = np.random.Generator(np.random.PCG64(arguments.seed))
    items, means = len(difference), []
    left = arguments.resamples
    while left:
        count = min(left, max(1, _MAX_DRAWS // items))
        resampled = random.integers(0, items, (count, items), dtype=np.int32)
        means.append(difference[resampled].sum(1) / weight[resampled].sum(1))
        left -= count
    outside = (1 - arguments.confidence) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)


def _compare_tables(
    task: str, a: ItemTable, b: ItemTable, arguments: Arguments
) -> list[Comparison]:
    """Compare every number that both tables have. Raises: ValueError if their items differ."""
    if not np.array_equal(a.ids, b.ids):
        both = len(np.intersect1d(a.ids, b.ids))
        raise ValueError(
            f"{task}: A has {len(a.ids)} items and B {len(b.ids)}, of which {both} are the same, "
            "but a paired test needs the same items in the same order; evaluate both on one file"
        )
    one = np.ones(len(a.ids))
    found = []
    for name in sorted(a.predictions.keys() & b.predictions.keys()):
        right_a, right_b = (t.predictions[name] == t.labels for t in (a, b))
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        low, high = bootstrap_interval(right_b - right_a.astype(float), one, arguments)
        mean_a, mean_b = float(right_a.mean()), float(right_b.mean())
        p, tag = mcnemar(only_a, only_b), f"{task}/{name}"
        found.append(Comparison(tag, len(one), mean_a, mean_b, low, high, only_a, only_b, p))
    if a.losses.shape[1] == 1:
        loss_a, loss_b, weight = a.losses[:, 0], b.losses[:, 0], a.lengths[:, 0].astype(float)
        low, high = bootstrap_interval(loss_b - loss_a, weight, arguments)
        mean_a, mean_b = (float(loss.sum() / weight.sum()) for loss in (loss_a, loss_b))
        tag = f"{task}/loss"
        found.append(Comparison(tag, len(one), mean_a, mean_b, low, high, None, None, None))
    return found


def compare(arguments: Arguments) -> list[Comparison]:
    """Compare every number that A and B both have. Raises: ValueError if there is none."""
    files = [_files_of(path) for path in (arguments.a, arguments.b)]
    if all(path.is_file() for path in (arguments.a, arguments.b)):
        # Two files are compared whatever their names.
        files[1] = dict(zip(files[0], files[1].values(), strict=True))
    names = [name for name in files[0] if name in files[1]]
    if not names:
        raise ValueError(
            f"{arguments.a} and {arguments.b} have no task in common: {sorted(files[0])} and "
            f"{sorted(files[1])}; write both with eval/main.py --items-out"
        )
    return [
        comparison
        for name in names
        for comparison in _compare_tables(
            name, load_items(files[0][name]), load_items(files[1][name]), arguments
        )
    ]


def _files_of(path: Path) -> dict[str, Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    if not files:
        raise ValueError(
            f"{path} holds no .npz file; write some with eval/main.py --items-out {path}"
        )
    return {file.stem: file for file in files}


def _comparison_table(found: list[Comparison]) -> str:
    """The comparisons as a table, one per line."""
    width = max(len(c.tag) for c in found)
    lines = [
        f"{'':{width}}  {'items':>6}  {'A':>8}  {'B':>8}  {'B - A':>8}  "
        f"{'interval':>19}  {'only A':>6}  {'only B':>6}  p (McNemar)"
    ]
    for c in found:
        interval = f"{c.low:+.4f} {c.high:+.4f}"
        counts = [f"{'-' if n is None else n:>6}" for n in (c.only_a, c.only_b)]
        lines.append(
            f"{c.tag:{width}}  {c.items:6}  {c.a:8.4f}  {c.b:8.4f}  {c.difference:+8.4f}  "
            f"{interval:>19}  {counts[0]}  {counts[1]}  {'-' if c.p is None else f'{c.p:.3g}'}"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the options, compare, print the table."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        found = compare(arguments)
        log.info("%s", _comparison_table(found))
        rows = [asdict(c) | {"difference": c.difference} for c in found]
        report = {"settings": _settings(arguments), "comparisons": rows}
        write_json_target(arguments.json, report)


def _settings(arguments: Arguments) -> dict[str, str | int | float]:
    """The arguments that the numbers depend on, for JSON."""
    return {
        "a": str(arguments.a),
        "b": str(arguments.b),
        "resamples": arguments.resamples,
        "confidence": arguments.confidence,
        "seed": arguments.seed,
    }


if __name__ == "__main__":
    main()
