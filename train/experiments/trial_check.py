"""What can be known to be wrong with the runs of an experiment, before the first begins."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from data_prep.dataset.manifest import MANIFEST_NAME
from model.estimates.budget import checkpoint_bytes
from parallel.ranks import Ranks
from storage.atomic import read_json
from storage.run_folder import RunFolder
from train.config import Config
from train.experiments.trials import Trial
from train.preflight.inputs import Inputs, check_inputs

_QUIET = "train.preflight"  # which would say the same for every run


def check_trials(trials: Sequence[Trial], processes: int, folder: Path) -> dict[str, int]:
    """Check data, batch, schedule, disk space and folder of each run; returns its steps, by name.

    Memory is checked on the CPU only: a GPU would have to be taken for it.
    Raises: ValueError naming the run and what is wrong.
    """
    _check_folder(folder)
    ranks = Ranks(0, processes, 0, processes, torch.device("cpu"))
    steps = {}
    needed = 0
    with _without_notes():
        for trial in trials:
            try:
                _check_validated(trial.config)
                inputs = check_inputs(_cheap(trial.config), ranks)
            except (ValueError, OSError) as error:
                raise ValueError(f"{trial.name}: {error}") from error
            _check_same_data(trial, inputs)
            steps[trial.name] = inputs.last_step
            if not inputs.finished:
                needed += _kept_bytes(trial.config, inputs)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"the checkpoints of all {len(steps)} runs take {needed / 1e9:.1f} GB, and {above} has "
            f"{free / 1e9:.1f} GB free; give --save.keep 1 --save.keep-best 0, fewer runs, or "
            "another --out"
        )
    return steps


def _check_folder(folder: Path) -> None:
    """Raises: ValueError if the folder of the sweep is something else."""
    for what, file in (("a run", RunFolder(folder).config), ("a data set", folder / MANIFEST_NAME)):
        if file.is_file():
            raise ValueError(f"--out {folder} is {what}; choose another folder for the sweep")


def _check_same_data(trial: Trial, inputs: Inputs) -> None:
    """Raises: ValueError if the folder of the trial holds a run on other data."""
    found, own = trial.folder.config, inputs.data.fingerprint
    read = read_json(found).get("data_fingerprint", own) if found.is_file() else own
    if read != own:
        raise ValueError(
            f"{trial.config.out} holds a run on data {read[:12]}, and --data "
            f"{trial.config.data_text} is {own[:12]}; give another --out, or move that run away"
        )


def _check_validated(config: Config) -> None:
    """Raises: ValueError if the run would have no validation loss."""
    if not config.eval.every:
        raise ValueError("eval.every=0 measures nothing to compare; give a number, or omit it")


def _cheap(config: Config) -> Config:
    """The run without what takes long or a GPU to check; it checks that itself at its start."""
    on_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.device_count() > 0)
    micro_batch = 1 if on_cuda and config.micro_batch == "auto" else config.micro_batch
    residual = "float32" if on_cuda else config.residual
    check = "cached" if config.data_check == "full" else config.data_check
    return replace(config, data_check=check, stage=None, micro_batch=micro_batch, residual=residual)


def _kept_bytes(config: Config, inputs: Inputs) -> int:
    """What the checkpoints of a run take at its end."""
    update = config.optimizer.update_cost(inputs.network, "cpu")
    return config.save.max_kept(inputs.steps) * checkpoint_bytes(inputs.network, update)


@contextmanager
def _without_notes() -> Iterator[None]:
    log = logging.getLogger(_QUIET)
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
