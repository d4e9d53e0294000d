"""A finished run is taken instead of run again, if it is the one that was planned."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from model.config import GPTConfig
from storage.option_values import AtMost
from storage.records.run_records import flat_settings
from storage.run_folder import RunFolder
from train.checkpoints.config_changes import OF_ONE_START
from train.checkpoints.recorded_config import recorded_settings
from train.config import Config
from train.experiments.trials import Trial
from train.reporting.setting_differences import short_value

# They decide where a run is and what is seen and kept of it, not what it learns.
_NOT_COMPARED = (*OF_ONE_START, "out", "data", "stage", "data_check", "data_recheck_hours")
_GROUPS_NOT_COMPARED = ("eval.", "sample.", "save.", "log.")


def check_taken(trials: Sequence[Trial]) -> None:
    """Raises: ValueError if the folder of a trial holds a run with other settings."""
    for trial in trials:
        differences = list(_differences(trial.config, trial.folder))
        if differences:
            raise ValueError(
                f"{trial.config.out} holds a run with other settings ({'; '.join(differences)}); "
                "give another --out, or move that run away"
            )


def _differences(config: Config, folder: RunFolder) -> Iterator[str]:
    """What the settings of the run in a folder, if there is one, would have to be."""
    recorded = recorded_settings(folder)
    if recorded is None:
        return
    found = flat_settings(recorded)
    network = config.network
    if network.vocab_size == GPTConfig.vocab_size:  # which follows from the data set
        network = replace(network, vocab_size=found.get("model.vocab_size", network.vocab_size))
    own = config.micro_batch
    planned = flat_settings(config.as_json(network, 1 if own == "auto" else own))
    if own == "auto":
        del planned["micro_batch"]
    if isinstance(config.schedule.warmup_steps, AtMost):  # shortened if it does not fit
        del planned["schedule.warmup_steps"]
    for key, value in planned.items():
        if key in _NOT_COMPARED or key.startswith(_GROUPS_NOT_COMPARED) or key not in found:
            continue
        if found[key] != value:
            yield f"{key} {short_value(found[key])} instead of {short_value(value)}"
