"""Settings from a file (`--config`): TOML or JSON with the keys of a run's config.json."""

import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from storage.atomic import read_json
from storage.run_folder import RunFolder
from storage.user_errors import reason_of
from train.checkpoints.config_values import UnknownSetting, config_with
from train.checkpoints.recorded_config import of_the_run
from train.config import Config

_YAML = (".yaml", ".yml")
_MOST_BYTES = 1_000_000


class ConfigFile:
    """The settings in a file."""

    def __init__(self, path: Path) -> None:
        """Raises: ValueError if the file cannot be read, or holds no settings."""
        content = _content(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds no settings; write an object with some")
        self.path = path
        self.is_record = isinstance(content.get("config"), dict)
        """Whether it is the config.json of a run, with more than its settings."""
        found = of_the_run(content["config"]) if self.is_record else content
        self._settings = {key: _plain(value) for key, value in found.items()}

    def over(self, base: Config) -> Config:
        """`base` with these settings. Raises: ValueError with the file, the key and the rule."""
        try:
            return config_with(base, self._settings)
        except UnknownSetting as error:
            meant = " or ".join(error.meant) or "one of those in a run's config.json"
            raise ValueError(
                f"{self.path} has {error.key}, which is no setting; perhaps you meant {meant}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    @property
    def model_fields(self) -> set[str]:
        """The fields of the model that the file names."""
        return set(self._settings.get("model", ()))

    def check_new_run(self) -> None:
        """Raises: ValueError if it is the record of a run, whose folder a new run may not take."""
        if self.is_record:
            raise ValueError(
                f"{self.path} is the record of a run; give --out FOLDER for a new run with its "
                f"settings, or --continue {self.path.parent} alone to continue that run"
            )


def _content(path: Path) -> Any:
    if path.suffix in _YAML:
        raise ValueError(
            f"{path} is YAML, which is not read; write it as TOML (`steps = 1000`, and groups such "
            "as `[optimizer]` with `lr = 3e-4` below) or as JSON, and give that file"
        )
    if path.is_dir():
        run = RunFolder(path)
        if run.config.is_file():
            raise ValueError(
                f"{path} is the folder of a run; give --config {run.config} for a new run with its "
                f"settings, or --continue {path} to continue it"
            )
        raise ValueError(f"{path} is a folder; give a .toml or .json file")
    try:
        if path.suffix == ".json":
            return read_json(path)
        if path.suffix == ".toml":
            return _toml(path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({reason_of(error)}); give a .toml or .json file with settings"
        ) from error
    raise ValueError(f"{path} ends in neither .toml nor .json, which say how it is read; rename it")


def _toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} is longer than {_MOST_BYTES} bytes, so it holds no settings")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML ({error}); correct it there") from error


def _plain(value: Any) -> Any:
    """The value as JSON has it. TOML has no null, so the text None stands for it."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    return None if value == "None" else value
