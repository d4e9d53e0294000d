"""A band as a file: what runs that differ in the seed only have reached at marked steps.

bench/make_band.py makes one from runs; bench/bands/ has those that come with Ratchet.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from storage.atomic import read_json, write_text
from storage.json_lines import is_count, is_number
from storage.records.json_fields import check_fields
from train.guards.band.marks import FIGURES

SHIPPED = Path(__file__).resolve().parents[3] / "bench" / "bands"
LEAST_SEEDS = 10
_FORMAT = 1
_DIGITS = 7  # after the point: differences by rounding begin there
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "name": str,
    "command": str,
    "data_fingerprint": str,
    "recipe": dict,
    "steps": int,
    "val_tokens": int,
    "made": dict,
    "marks": list,
    "seeds": dict,
    "rounding": dict,
}
_CURE = "make it again with bench/make_band.py"

Values = Sequence[float | None]
"""One for each mark; None where it was not measured."""


@dataclass(frozen=True)
class Spread:
    """What several runs have reached: mean and sample standard deviation."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class SeedCurve:
    """What the run of one seed has reached."""

    figures: Mapping[str, Values]
    digests: Sequence[str | None]
    """Of the tokens of the last update before each mark."""


@dataclass(frozen=True)
class Band:
    """Runs of one recipe with several seeds."""

    name: str
    command: str
    """The command that makes such a run."""
    data_fingerprint: str
    recipe: Mapping[str, Any]
    """The settings that decide the training, by dotted name."""
    steps: int
    val_tokens: int
    """Tokens of each validation."""
    made: Mapping[str, Any]
    """What computed the runs: torch, device, number format, commit."""
    marks: Sequence[int]
    seeds: Mapping[int, SeedCurve]
    rounding: Mapping[str, Values] = field(default_factory=dict)
    """Root mean square of the differences between runs of one seed that round differently
    (micro-batch, processes, threads)."""
    rounding_counts: Sequence[int] = ()
    """How many such differences there are at each mark."""

    def spread(self, figure: str, mark: int) -> Spread | None:
        """Over the seeds, at the mark of this number; None if too few have the figure."""
        found = [curve.figures[figure][mark] for curve in self.seeds.values()]
        values = [value for value in found if value is not None]
        if len(values) < LEAST_SEEDS - 1:  # a seed may have been left out
            return None
        return Spread(fmean(values), stdev(values), len(values))

    def without(self, seeds: Iterable[int]) -> "Band":
        """The band of the other seeds, to judge these by it."""
        left_out = set(seeds)
        kept = {seed: curve for seed, curve in self.seeds.items() if seed not in left_out}
        fields = {**vars(self), "seeds": kept}
        return Band(**fields)


def read_band(path: Path) -> Band:
    """The band in a file.

    Raises: ValueError if the file is missing, damaged or of another version.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no band {path}; give a file that bench/make_band.py wrote, auto or off"
        )
    found = read_json(path)
    version = found.get("format") if isinstance(found, dict) else None
    if isinstance(version, int) and version != _FORMAT:
        raise ValueError(
            f"{path} has format {version}, and this version reads format {_FORMAT}; update "
            f"Ratchet, or {_CURE}"
        )
    record = check_fields(path, found, _FIELDS, _CURE)
    try:
        return _band_of(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {_CURE}") from error


def _band_of(record: dict[str, Any]) -> Band:
    marks = record["marks"]
    if not marks or not all(map(is_count, marks)) or sorted(set(marks)) != marks:
        raise ValueError("its marks are not steps in order")
    seeds = {
        int(seed): SeedCurve(
            {figure: _values(own[figure], len(marks)) for figure in FIGURES},
            _digests(own["digests"], len(marks)),
        )
        for seed, own in record["seeds"].items()
    }
    if len(seeds) < LEAST_SEEDS:
        raise ValueError(f"it has {len(seeds)} seeds")
    rounding = record["rounding"]
    known = {figure: _values(rounding[figure], len(marks)) for figure in FIGURES if rounding}
    return Band(
        record["name"],
        record["command"],
        record["data_fingerprint"],
        record["recipe"],
        record["steps"],
        record["val_tokens"],
        record["made"],
        tuple(marks),
        seeds,
        known,
        _counts(rounding["count"], len(marks)) if rounding else (),
    )


def _values(found: Any, count: int) -> Values:
    values = tuple(found)
    if len(values) != count or not all(value is None or is_number(value) for value in values):
        raise ValueError("a list has not one number for each mark")
    return values


def _counts(found: Any, count: int) -> Sequence[int]:
    counts = tuple(found)
    if len(counts) != count or not all(map(is_count, counts)):
        raise ValueError("a list has not one count for each mark")
    return counts


def _digests(found: Any, count: int) -> Sequence[str | None]:
    digests = tuple(found)
    if len(digests) != count or not all(isinstance(part, str | None) for part in digests):
        raise ValueError("a list has not one digest for each mark")
    return digests


def write_band(path: Path, band: Band) -> None:
    """Write the file, a line for each list. Mean, deviation and count are for readers of it."""
    spreads = {
        figure: {
            part: [_rounded(getattr(spread, part, None)) for spread in _spreads(band, figure)]
            for part in ("mean", "deviation", "count")
        }
        for figure in FIGURES
    }
    record = {
        "format": _FORMAT,
        "name": band.name,
        "command": band.command,
        "data_fingerprint": band.data_fingerprint,
        "steps": band.steps,
        "val_tokens": band.val_tokens,
        "made": band.made,
        "recipe": dict(band.recipe),
        "marks": list(band.marks),
        "over_seeds": spreads,
        "rounding": _rounding_record(band) if band.rounding else {},
        "seeds": {
            str(seed): {
                **{figure: list(map(_rounded, curve.figures[figure])) for figure in FIGURES},
                "digests": list(curve.digests),
            }
            for seed, curve in sorted(band.seeds.items())
        },
    }
    write_text(path, _with_short_lists(record) + "\n")


def _rounding_record(band: Band) -> dict[str, Any]:
    # Differences by rounding begin behind the digits of the other figures.
    parts = {f: [v and float(f"{v:.3g}") for v in values] for f, values in band.rounding.items()}
    return {"count": list(band.rounding_counts), **parts}


def _spreads(band: Band, figure: str) -> list[Spread | None]:
    return [band.spread(figure, number) for number in range(len(band.marks))]


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else round(value, _DIGITS)


def _with_short_lists(value: Any, indent: str = "") -> str:
    """JSON with a line for each key, and lists in one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    deeper = indent + "  "
    parts = (f"{json.dumps(k)}: {_with_short_lists(v, deeper)}" for k, v in value.items())
    return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
