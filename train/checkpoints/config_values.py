"""Settings as JSON or TOML holds them, made into a configuration with checks of every value."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from storage.option_values import own_path
from train.config import Config
from train.optimizers.config import OptimizerConfig
from train.optimizers.registry import OPTIMIZERS, optimizer_name

_T = TypeVar("_T")
_OPTIMIZER = "optimizer"
_LARGEST = 2**64 - 1
_LARGEST_FLOAT = sys.float_info.max
_KINDS: dict[Any, str] = {
    NoneType: "None",
    bool: "true or false",
    int: "a whole number of at most 64 bits",
    float: "a number",
    str: "a text",
    Path: "a path",
}


class UnknownSetting(ValueError):
    """A key that is no setting."""

    def __init__(self, key: str, known: list[str]) -> None:
        super().__init__(f"{key} is no setting")
        self.key = key
        same_name = [name for name in known if _leaf(name) == _leaf(key)]
        self.meant = (same_name or get_close_matches(key.replace("-", "_"), known, cutoff=0.5))[:2]
        """Settings that the key may have been meant to be."""


def config_with(base: Config, settings: Mapping[str, Any]) -> Config:
    """`base` with these settings, nested as in a run's config.json.

    Raises: UnknownSetting for a key that is none, ValueError for a value of another type, and as
    the configuration does for one that is out of range.
    """
    optimizer = base.optimizer
    if _OPTIMIZER in settings:
        optimizer = _optimizer_with(base, settings[_OPTIMIZER])
    known = [*_keys(replace(base, optimizer=optimizer)), f"{_OPTIMIZER}.name"]
    others = {key: value for key, value in settings.items() if key != _OPTIMIZER}
    own = _values(base, others, "", known)
    if _OPTIMIZER in settings:
        values = {k: v for k, v in settings[_OPTIMIZER].items() if k != "name"}
        changed = _values(optimizer, values, f"{_OPTIMIZER}.", known)
        own[_OPTIMIZER] = _replaced(optimizer, changed)
    return replace(base, **own)


def _optimizer_with(base: Config, values: Any) -> OptimizerConfig:
    """The optimizer whose settings the values change: the present one, or the one they name."""
    _check_group(_OPTIMIZER, values)
    present = optimizer_name(base.optimizer)
    name = values.get("name", present)
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r:.60} is not one of {', '.join(OPTIMIZERS)}")
    return base.optimizer if name == present else OPTIMIZERS[name].config.defaults_for(base.model)


def _values(base: Any, settings: Mapping[str, Any], prefix: str, known: list[str]) -> dict:
    """The values of the fields of `base` that the settings name."""
    hints = get_type_hints(type(base))
    names = {field.name for field in fields(base)}
    for key in settings:
        if key not in names:
            raise UnknownSetting(f"{prefix}{key}", known)
    own = {}
    for key, value in settings.items():
        if is_dataclass(inner := getattr(base, key)):
            _check_group(f"{prefix}{key}", value)
            own[key] = _replaced(inner, _values(inner, value, f"{prefix}{key}.", known))
        else:
            own[key] = _value(f"{prefix}{key}", hints[key], value)
    return own


def _replaced(group: Any, values: Mapping[str, Any]) -> Any:
    return replace(group, **values)


def _value(key: str, hint: Any, value: Any) -> Any:
    """The value of a field. Raises: ValueError if it is of another type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if _is_a(kind, value):
            return _as(kind, key, value)
    raise ValueError(f"{key} is {value!r:.60}, not {' or '.join(map(_named, kinds))}")


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a field of this type may have the value, as JSON holds it."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        of = get_args(kind)[0]
        if of is Path and type(value) is str:  # a list of one path may be written without brackets
            return True
        numbers = (int, float) if of is str else ()  # as the weights in data_weights_at
        return isinstance(value, list) and all(_is_a(of, v) or type(v) in numbers for v in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT
    if kind is int:  # `bool` is no `int` here
        return type(value) is int and abs(value) <= _LARGEST
    return type(value) is (str if kind is Path else kind)


def _as(kind: Any, key: str, value: Any) -> Any:
    if kind is Path:
        return _path(key, value)
    if kind is float:
        return float(value)
    if kind is str:
        return str(value)
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_as(get_args(kind)[0], key, item) for item in items)
    return value


def _path(key: str, value: str) -> Path:
    try:
        return own_path(value)
    except ValueError as error:
        raise ValueError(f"{key} {value!r} {error}") from error


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    return "a list of texts" if get_origin(kind) is tuple else _KINDS[kind]


def _check_group(key: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{key}: {values!r:.60} is no group of settings")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """The keys of all settings, with points between their parts."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2].replace("-", "_")
