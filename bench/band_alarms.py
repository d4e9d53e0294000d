"""How often a band flags sound runs, and which planted mistakes it finds.

    python bench/band_alarms.py bench/bands/demo.json --sound runs/band_* --mistaken runs/wrong_* \
        --out bench/results/band_demo.json

Every run is judged twice: by the other seeds alone, its own left out, and beside the run of its own
seed, unless the band was made of the very run. Mistakes are judged in the first fifth of the run,
sound runs as far as they go. A mistaken run's folder ends with the name of its mistake
(bench/planted_mistakes.py). The table is written beside the JSON, as .md.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench.make_band import MeasuredRun, measured_run
from bench.planted_mistakes import MISTAKES
from bench.provenance import provenance
from storage.atomic import write_json, write_text
from storage.json_lines import read_metrics
from storage.option_values import check_output_file
from storage.run_folder import RunFolder
from storage.script_options import parse_options
from storage.user_errors import exit_on_user_error
from train.guards.band.causes import likely_causes
from train.guards.band.judgement import BandJudge
from train.guards.band.recipe import band_differences
from train.guards.band.record import Band, read_band
from train.reporting.run_folders import find_runs

_SAME = 1e-6  # a band has seven digits
_HEAD = ("planted mistake", "beside its own seed", "by the other seeds", "likely causes it names")
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Count false alarms and found mistakes of a band."""

    band: Annotated[Path, tyro.conf.Positional]
    """File of the band."""
    sound: tuple[Path, ...] = ()
    """Folders of sound runs."""
    mistaken: tuple[Path, ...] = ()
    """Folders of runs with a planted mistake."""
    until: float = 0.2
    """Share of a mistaken run that is judged."""
    out: Path | None = None
    """JSON file of the results. Default: they are only printed."""


def _judged(band: Band, run: MeasuredRun, until: float) -> dict[str, Any]:
    """What the band says of a run up to a share of its steps."""
    judge = BandJudge(band, run.facts.seed, run.facts.made)
    for line in read_metrics(RunFolder(run.path).metrics):
        if line["step"] > until * band.steps:
            break
        judge.add(line["step"], line)
    every = [one for result in judge.results for one in result.comparisons]
    outside = [result for result in judge.results if result.outside]
    found: dict[str, Any] = {
        "paired": judge.paired,
        "compared": len(every),
        "reached": max((one.mark for one in every), default=0),
        "largest_z": max((abs(one.z) for one in every), default=0.0),
        "smallest_chance": min((one.chance for one in every), default=1.0),
        "flagged": bool(outside),
    }
    if outside:
        first = outside[0]
        beyond = {one.figure: one.z for one in first.comparisons if one.outside}
        found |= {
            "first_mark": first.mark,
            "figures": ["tokens"] * bool(first.other_data) + list(beyond),
            "z": beyond,
            "marks_outside": [result.mark for result in outside],
            "causes": likely_causes(judge.results),
        }
    return found


def _both_ways(band: Band, run: MeasuredRun, until: float) -> dict[str, Any]:
    """Judged by the other seeds, and beside its own seed's run if that is another one."""
    found = {"by_seeds": _judged(band.without([run.facts.seed]), run, until)}
    own = band.seeds.get(run.facts.seed)
    if own is not None and band.rounding and not _is_of_band(own.figures, run):
        found["by_own_seed"] = _judged(band, run, until)
    return found


def _is_of_band(own: Any, run: MeasuredRun) -> bool:
    """Whether the band was made of this run."""
    return all(
        a is None or (b is not None and abs(a - b) < _SAME)
        for figure, values in own.items()
        for a, b in zip(values, run.curve.figures[figure], strict=True)
    )


def _checked_runs(band: Band, paths: Sequence[Path]) -> Iterator[MeasuredRun]:
    """Raises: ValueError if a path holds no run, or one of another recipe."""
    found, nothing = find_runs(paths)
    if nothing:
        raise ValueError(f"{nothing[0]} is no run and holds none; give run folders")
    for path in found:
        run = measured_run(path)
        if differences := band_differences(band, run.facts):
            raise ValueError(
                f"{path} is of another recipe ({'; '.join(differences[:4])}); leave it out"
            )
        yield run


def _mistake_of(path: Path) -> str:
    for name in MISTAKES:
        if path.name.endswith(name):
            return name
    raise ValueError(
        f"{path} does not end with the name of a mistake; use one of {', '.join(MISTAKES)}"
    )


def _rows(mistakes: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield f"| {' | '.join(_HEAD)} |"
    yield f"| {' | '.join(['---'] * len(_HEAD))} |"
    for name, result in mistakes.items():
        ways = [result.get("by_own_seed"), result["by_seeds"]]
        causes = [", ".join(way["causes"]) or "none" for way in ways if way and way["flagged"]]
        cells = [MISTAKES[name][0], *map(_cell, ways), "; by the others: ".join(causes) or "-"]
        yield f"| {' | '.join(cells)} |"


def _cell(way: dict[str, Any] | None) -> str:
    if way is None:
        return "not judged"
    if not way["flagged"]:
        return f"not flagged (largest z {way['largest_z']:.1f})"
    parts = [
        f"{figure} {way['z'][figure]:+,.0f}" if figure in way["z"] else figure
        for figure in way["figures"]
    ]
    return f"step {way['first_mark']}: {', '.join(parts)}"


def _table(band: Band, result: dict[str, Any]) -> str:
    """The results in Markdown."""
    mistakes, ways = result["mistaken"], {"by_seeds": "by the other seeds"}
    parts = [f"# The band `{band.name}` of {len(band.seeds)} seeds"]
    ways["by_own_seed"] = "beside another run of its own seed"
    for way, what in ways.items():
        runs = [one[way] for one in result["sound"].values() if way in one]
        if runs:
            parts.append(
                f"Sound runs judged {what}: {sum(one['flagged'] for one in runs)} of {len(runs)} "
                f"flagged ({sum(one['compared'] for one in runs):,} figures compared, smallest "
                f"chance {min(one['smallest_chance'] for one in runs):.1g})."
            )
    for way, what in ways.items():
        runs = [one[way] for one in mistakes.values() if way in one]
        if runs:
            parts.append(
                f"Mistakes judged {what}: {sum(one['flagged'] for one in runs)} of {len(runs)} "
                f"flagged within {result['until']:.0%} of the run."
            )
    if mistakes:
        parts.append("\n".join(_rows(mistakes)))
        parts.append("Numbers are differences from the expected value in deviations.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Judge every run, print the table, write the results."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_options(Arguments, description=__doc__)
    with exit_on_user_error(ValueError, OSError):
        check_output_file("--out", arguments.out)
        band = read_band(arguments.band)
        runs = _checked_runs(band, arguments.sound)
        sound = {run.path.name: _both_ways(band, run, 1.0) for run in runs}
        mistaken = {
            _mistake_of(run.path): _both_ways(band, run, arguments.until)
            for run in _checked_runs(band, arguments.mistaken)
        }
        result = {"until": arguments.until, "sound": sound, "mistaken": mistaken}
        text = _table(band, result)
        if arguments.out is not None:
            write_json(arguments.out, provenance(("torch", "scipy")) | result)
            write_text(arguments.out.with_suffix(".md"), text)
        log.info("%s", text)


if __name__ == "__main__":
    main()
