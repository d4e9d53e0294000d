"""The configuration of a run that exists, read back from its config.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from storage.records.run_records import cure_of_config
from storage.run_folder import RunFolder
from train.checkpoints.config_changes import OF_ONE_START
from train.checkpoints.config_values import UnknownSetting, config_with
from train.config import Config

# The micro-batch is recorded as it was chosen, and `auto` takes the recorded one.
_NOT_OF_THE_RUN = (*OF_ONE_START, "out", "micro_batch")


def recorded_settings(folder: RunFolder) -> dict[str, Any] | None:
    """The settings in the folder's config.json; None if no run is there.

    Raises: ValueError if the file is damaged.
    """
    return folder.read_config()["config"] if folder.config.is_file() else None


def recorded_config(folder: RunFolder) -> Config | None:
    """The configuration with which the run in the folder continues; None if no run is there.

    Raises: ValueError if config.json is damaged, or of a version with other settings.
    """
    settings = recorded_settings(folder)
    if settings is None:
        return None
    cure = cure_of_config(folder.config)
    try:
        return replace(config_with(Config(), of_the_run(settings)), out=folder.path)
    except UnknownSetting as error:
        raise ValueError(
            f"{folder.config} has a setting that this version does not know: {error.key}; if a "
            f"newer version wrote it, update Ratchet, else {cure}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder.config} does not describe a run ({error}); {cure}") from error


def of_the_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings without those of one start, such as `--out`."""
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_RUN}
