"""Compare runs: a table, the settings in which they differ, and a picture of their losses.

    python train/compare_runs.py runs/*
    python train/compare_runs.py runs/* --plot losses.png
    python train/compare_runs.py runs/* --sort speed --all
    python train/compare_runs.py runs/* --group --csv runs.csv

A run may be in any state, also running; nothing is written to it. What is no run is passed over.
The best run is the first. The time is that of the training steps: without evaluation, saving, and
pauses between starts. Exit code 2: none of the folders holds a run that can be read.
"""

import logging
import math
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from storage.atomic import write_text
from storage.option_values import check_output_file
from storage.script_options import parse_options
from storage.terminal.json_output import (
    STANDARD_OUTPUT,
    check_json_target,
    log_to_stderr,
    write_json_target,
)
from storage.terminal.printable import printable
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error
from train.reporting.run_folders import find_runs, read_runs
from train.reporting.run_groups import format_groups, group_runs
from train.reporting.run_summary import RunSummary
from train.reporting.run_table import csv_text, format_runs, short_name, validation_letters
from train.reporting.runs_picture import PICTURE_SUFFIXES, draw_runs
from train.reporting.setting_differences import format_differences, setting_differences

_LEAST_WIDTH = 40
_FALLBACK = (80, 24)  # columns and rows where standard output is no terminal
_SORTS: dict[str, Any] = {
    "loss": lambda run: run.best_val_loss,
    "last-loss": lambda run: run.last_val_loss,
    "bits": lambda run: run.best_bits_per_byte,
    "tokens": lambda run: -run.tokens,
    "speed": lambda run: None if run.tokens_per_second is None else -run.tokens_per_second,
    "time": lambda run: run.train_seconds,
    "rate": lambda run: run.learning_rate,
    "name": lambda run: 0,  # which decides between equals
}
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Compare runs side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    """Run folders, or folders that hold some."""
    sort: Literal[
        "best", "loss", "last-loss", "bits", "tokens", "speed", "time", "rate", "name"
    ] = "best"
    """What decides the order of the rows. best: the best validation loss, or bits per byte if the
    runs are validated on different tokens."""
    all: bool = False
    """Show all columns, also what is the same in all runs."""
    group: bool = False
    """Also show mean and standard deviation of runs that differ in their seed only."""
    plot: Path | None = None
    """Picture to draw (.png, .svg or .pdf): losses over tokens trained on, and over time."""
    csv: Path | None = None
    """CSV file to write all figures to; -: standard output."""
    json: Path | None = None
    """JSON file to write all figures, settings and differences to; -: standard output."""

    def __post_init__(self) -> None:
        if self.plot is not None and self.plot.suffix.lower() not in ("", *PICTURE_SUFFIXES):
            raise ValueError(
                f"--plot {self.plot} is no picture; give a name that ends in "
                f"{', '.join(PICTURE_SUFFIXES[:-1])} or {PICTURE_SUFFIXES[-1]}"
            )
        check_output_file("--plot", self.plot)
        if self.csv != STANDARD_OUTPUT:
            check_output_file("--csv", self.csv)
        check_json_target(self.json)
        if self.csv == self.json == STANDARD_OUTPUT:
            raise ValueError("--csv - and --json - both want standard output; give one a file")


def _in_order(runs: Sequence[RunSummary], sort: str) -> list[RunSummary]:
    """The runs in the order that `--sort` names; those without a value are last."""
    if sort == "best":
        sort = "bits" if len({run.validation for run in runs}) > 1 else "loss"
    value = _SORTS[sort]
    return sorted(runs, key=lambda run: (value(run) is None, value(run) or 0, _by_number(run.name)))


def _by_number(name: str) -> list[tuple[float, str]]:
    """A key that sorts run_2 before run_10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(float(part), "") if part.isdecimal() else (math.inf, part) for part in parts]


def _notes(runs: Sequence[RunSummary]) -> list[str]:
    """What a reader must know about the table."""
    letters = validation_letters(runs)
    found = []
    if len(letters) > 1:
        of_letter = {letters[run.validation]: run for run in reversed(runs)}
        sets = "; ".join(
            f"{letter}: {run.val_tokens or 'unknown'} tokens of {printable(run.data)}"
            for letter, run in sorted(of_letter.items())
        )
        found.append(
            f"validated on different tokens ({sets}): losses compare only within a letter; bits "
            "per byte also compare across letters, if the text is the same"
        )
    found += [
        f"{short_name(run.name)} {run.state}: {printable(run.reason)}" for run in runs if run.reason
    ]
    if any(run.state == "stopped" for run in runs):
        found.append("stopped: the run was killed, or this is a copy; starting it again continues")
    return found


def _report(arguments: Arguments) -> dict[str, Any]:
    """Print the comparison, and return it as JSON values.

    Raises: ValueError if there is no run that can be read.
    """
    paths, others = find_runs(arguments.runs)
    if not paths:
        named = ", ".join(map(str, others))
        raise ValueError(f"{named}: no run is there; give run folders, such as runs/*")
    runs, damaged = read_runs(paths)
    if not runs:
        raise ValueError(f"no run can be read: {'; '.join(damaged.values())}")
    runs = _in_order(runs, arguments.sort)
    if arguments.plot is not None:
        draw_runs(runs, arguments.plot)
    width = max(shutil.get_terminal_size(_FALLBACK).columns, _LEAST_WIDTH)
    groups = group_runs(runs) if arguments.group else []
    parts = [
        format_runs(runs, width, arguments.all),
        format_differences(runs, width) if len(runs) > 1 else "",
        format_groups(groups, width) if groups else "",
        "\n".join(_notes(runs)),
    ]
    log.info("%s", "\n\n".join(filter(None, parts)))
    if arguments.plot is not None:
        log.info("drawn: %s", arguments.plot)
    if arguments.csv == STANDARD_OUTPUT:
        sys.stdout.write(csv_text(runs))
    elif arguments.csv is not None:
        write_text(arguments.csv, csv_text(runs))
    for path in others:
        log.info("passed over: %s is no run and holds none", printable(str(path)))
    for path, reason in damaged.items():
        log.warning("left out: %s (%s)", printable(path), printable(reason))
    return {
        "runs": [run.as_json() for run in runs],
        "same_validation": len({run.validation for run in runs}) == 1,
        "differences": setting_differences(runs),
        "groups": [asdict(group) for group in groups],
        "left_out": damaged,
        "passed_over": [str(path) for path in others],
    }


def main() -> None:
    """Read the runs, print the comparison, and write what was asked for."""
    tolerate_lost_output()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_options(Arguments, description=__doc__)
    if arguments.csv == STANDARD_OUTPUT:
        log_to_stderr()
    with exit_on_user_error(ValueError, OSError):
        write_json_target(arguments.json, _report(arguments))


if __name__ == "__main__":
    main()
