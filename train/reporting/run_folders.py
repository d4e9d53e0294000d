"""The runs that paths on a command line name, and what can be read of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from storage.run_folder import RunFolder
from storage.user_errors import reason_of
from train.reporting.run_summary import RunSummary, summarize_run


def find_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders that the paths name or hold, each once, and the paths that do neither."""
    found: dict[Path, Path] = {}
    others = []
    for path in paths:
        inside = [path] if _is_run(path) else sorted(filter(_is_run, _entries(path)))
        for run in inside:
            found.setdefault(run.resolve(), run)
        if not inside:
            others.append(path)
    return list(found.values()), others


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:  # a file, or nothing
        return []


def _is_run(path: Path) -> bool:
    try:
        return RunFolder(path).config.is_file()
    except OSError:
        return False


def _run_names(paths: Sequence[Path]) -> list[str]:
    """The paths without what they begin with in common."""
    parents = [path.absolute().parent for path in paths]
    common = os.path.commonpath(parents)
    return [os.path.relpath(path.absolute(), common) for path in paths]


def read_runs(paths: Sequence[Path]) -> tuple[list[RunSummary], dict[str, str]]:
    """The summaries of the runs, and why others cannot be read, by path."""
    runs, damaged = [], {}
    for path, name in zip(paths, _run_names(paths), strict=True):
        try:
            runs.append(summarize_run(path, name))
        except (ValueError, OSError) as error:
            damaged[str(path)] = reason_of(error)
    return runs, damaged
