"""The configuration of a run that exists, read back from its config.json."""

from dataclasses import Field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from storage.records.run_records import cure_of_config
from storage.run_folder import RunFolder
from train.config import Config
from train.optimizers.registry import OPTIMIZERS

_T = TypeVar("_T")
# What belongs to one start and not to the run. The micro-batch is recorded as it was chosen, and
# `auto` takes the recorded one.
_OF_ONE_START = ("out", "allow", "stop_at", "profile", "micro_batch")


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
    try:
        return _config_from(settings, folder.path)
    except (TypeError, KeyError, ValueError) as error:
        cure = cure_of_config(folder.config)
        raise ValueError(
            f"{folder.config} does not describe a run ({error.args[0]}); {cure}"
        ) from error


def _config_from(settings: dict[str, Any], out: Path) -> Config:
    own = {key: value for key, value in settings.items() if key not in _OF_ONE_START}
    optimizer = own.pop("optimizer", {})
    if not isinstance(optimizer, dict):
        raise TypeError(f"{optimizer!r:.60} is no group of settings")
    name = optimizer.get("name", "adamw")  # the first version did not name it
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r:.60} is not one of {', '.join(OPTIMIZERS)}")
    kind = OPTIMIZERS[name].config
    own_settings = {key: value for key, value in optimizer.items() if key != "name"}
    config = replace(_dataclass_from(Config, own), out=out)
    return replace(config, optimizer=_dataclass_from(kind, own_settings))


def _dataclass_from(kind: type[_T], values: Any) -> _T:
    """The dataclass with these JSON values; what is not recorded has its default."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.60} is no group of settings")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := values.keys() - known.keys():
        raise KeyError(f"it has settings that this version does not know: {', '.join(unknown)}")
    return kind(**{key: _value(hints[key], known[key], value) for key, value in values.items()})


def _value(hint: Any, field: Field[Any], value: Any) -> Any:
    """The value of a field from its JSON. Raises: TypeError if it is of another type."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _dataclass_from(hint, value)
    for kind in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if kind is Path and isinstance(value, str):
            return Path(value)
        if get_origin(kind) is tuple and isinstance(value, list):
            item_kind = get_args(kind)[0]
            if all(type(item) is item_kind for item in value):
                return tuple(value)
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:  # `bool` is no `int` here
            return value
    raise TypeError(f"{field.name} is {value!r:.60}")
