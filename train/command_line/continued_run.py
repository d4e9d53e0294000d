"""The run that `--continue` names, whose settings are the defaults of this start."""

import logging
from difflib import get_close_matches
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME
from storage.checkpoint_folder import MANIFEST, is_step_name
from storage.run_folder import RunFolder
from train.checkpoints.recorded_config import recorded_config
from train.config import Config

_RUNS = Path("runs")
_MOST_NAMED = 4
log = logging.getLogger(__name__)


def continued_config(named: Path) -> Config:
    """The settings of the run that is named: by its folder, a checkpoint in it or its config.json.

    Raises: ValueError if there is no run, with what is there instead.
    """
    config = recorded_config(RunFolder(_folder_of_run(named)))
    if config is None:
        raise ValueError(f"--continue {named} {_what_is_there(named)}")
    if is_step_name(named.name):
        log.info("%s continues from its newest checkpoint; --branch begins at another", config.out)
    return config


def _folder_of_run(named: Path) -> Path:
    """The folder of the run that has this folder or file; else `named`."""
    path = named if len(named.parts) > 1 else named.absolute()
    for run in map(RunFolder, (path.parent, path.parent.parent)):
        inside = path in (run.config, run.checkpoints) or path.parent == run.checkpoints
        if inside and run.config.is_file():
            return run.path
    return named


def _what_is_there(named: Path) -> str:
    """What is to be said of a path at which no run is."""
    others = _other_runs(named)
    if not named.exists():
        return f"names no folder; {others}"
    if not named.is_dir():
        return f"is a file, not the folder of a run; {others}"
    if (named / MANIFEST_NAME).is_file():
        return f"is a data set, not a run; {others}, or begin a run with --data {named}"
    if (named / MANIFEST).is_file():
        return (
            f"is a checkpoint in no run's folder; give --init {named} to begin a run with its "
            "weights"
        )
    if checkpoints := RunFolder(named).all_checkpoints():
        return (
            f"holds checkpoints but no config.json; put its config.json back to continue that run, "
            f"or begin another one with --init {checkpoints[0]}"
        )
    return f"holds no run yet (no config.json); {others}"


def _other_runs(named: Path) -> str:
    """The cure: the runs whose names are the nearest, where the path is and in runs/."""
    places = dict.fromkeys([named.absolute().parent, _RUNS.absolute()])
    runs = {path.name: path for place in places for path in _runs_in(place)}
    near = get_close_matches(named.name, runs, _MOST_NAMED, 0.5) or list(runs)[:_MOST_NAMED]
    if not near:
        return "give the folder of a run, such as runs/demo"
    return f"give the folder of a run, such as {' or '.join(_shown(runs[name]) for name in near)}"


def _runs_in(place: Path) -> list[Path]:
    try:
        return sorted(path for path in place.iterdir() if RunFolder(path).config.is_file())
    except OSError:
        return []


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
