"""The grid of a sweep: which settings take which values, and the runs that follow."""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from train.command_line.parse import parse
from train.config import Config
from train.experiments.trials import Trial, plan_trial
from train.optimizers.registry import optimizer_name

_MOST_RUNS = 10_000
_LONGEST_NAME = 200  # bytes: file systems take 255, and a log's name is longer
_DIGITS = 3  # of the values of a range
# What the sweep itself decides, and what decides it.
_OF_THE_SWEEP = {"seed": "--seeds", "out": "--out", "continue": "a new sweep", "branch": "--init"}
_OTHER_NAMES = {"optimizer.name": "optimizer"}


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes."""

    setting: str
    """As in config.json: optimizer.lr."""
    values: tuple[str, ...]
    """As a command line has them."""


@dataclass(frozen=True)
class GridPoint:
    """One combination of values, and its run with each seed."""

    settings: dict[str, Any]
    """The value of each setting that is varied, as the configuration has it."""
    trials: tuple[Trial, ...]


def set_axis(text: str) -> Axis:
    """The axis that `--set SETTING=VALUE,VALUE` describes. Raises: ValueError if it is none."""
    name, equals, values = text.removeprefix("--").partition("=")
    parts = tuple(part.strip() for part in values.split(","))
    if not (name.strip() and equals and all(parts)):
        raise ValueError(
            f"--set {text or repr(text)} names no setting with values; write it as "
            "--set optimizer.lr=3e-4,1e-3"
        )
    return Axis(_key(name.strip(), "--set"), parts)


def range_axis(setting: str, low: float, high: float, points: int) -> Axis:
    """The axis of a range test: `points` values from `low` to `high`, each the same times the last.

    Raises: ValueError if there are none.
    """
    if not 0 < low < high < float("inf"):
        raise ValueError(
            f"--log-range {setting} {low:g} {high:g} is no range; give a positive number and then "
            "a larger one, such as 1e-5 1"
        )
    if not 2 <= points <= _MOST_RUNS:
        raise ValueError(f"points={points} is out of range; use 2 to {_MOST_RUNS}")
    ratio = high / low
    exact = [low * ratio ** (n / (points - 1)) for n in range(points)]
    values = list(dict.fromkeys(f"{value:.{_DIGITS}g}" for value in exact))
    if len(values) < points:
        raise ValueError(
            f"points={points} is too many for {low:g} to {high:g}: values with {_DIGITS} digits "
            f"would be equal; use points={len(values)} or fewer"
        )
    return Axis(_key(setting, "--log-range"), tuple(values))


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that `--seeds` names: 3 for 1, 2 and 3, or a list such as 4,8,15.

    Raises: ValueError if it names none.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    listed = "," in text
    found = tuple(numbers if listed else range(1, min(sum(numbers), _MOST_RUNS) + 1))
    if not found or min(found) < 0 or (not listed and sum(numbers) > _MOST_RUNS):
        raise ValueError(
            f"--seeds {text or repr(text)} names no seeds; give how many (3: seeds 1, 2 and 3) or "
            "a list (4,8,15)"
        )
    if len(set(found)) < len(found):
        raise ValueError(f"--seeds {text} names a seed twice; give each once")
    return found


def plan_grid(
    words: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int], folder: Path
) -> list[GridPoint]:
    """All combinations of values, each with every seed, as runs in folders below `folder`.

    `words` are those of train/main.py that all runs share.
    Raises: ValueError if a setting refuses a value, is given twice or is not known; SystemExit with
    a sentence for what the parser refuses.
    """
    _check_once(words, axes)
    count = len(seeds)
    for axis in axes:
        count *= len(axis.values)
    if count > _MOST_RUNS:
        raise ValueError(f"{count:,} runs are too many; give fewer values (at most {_MOST_RUNS:,})")
    base = parse([*words, "--out", str(folder / "run")])
    points = []
    taken: dict[str, str] = {}
    for values in product(*(axis.values for axis in axes)):
        given = [
            word
            for axis, value in zip(axes, values, strict=True)
            for word in _words(axis.setting, value, base)
        ]
        first = plan_trial([*words, *given], seeds[0], folder / "run")
        settings = {axis.setting: _value(first.config, axis.setting) for axis in axes}
        name = _name(settings)
        typed = ", ".join(f"{a.setting}={v}" for a, v in zip(axes, values, strict=True))
        if name in taken:
            raise ValueError(f"{taken[name]} and {typed} are the same; give each value once")
        taken[name] = typed
        trials = tuple(_with_seed(first, seed, folder / f"{name},seed={seed}") for seed in seeds)
        points.append(GridPoint(settings, trials))
    return points


def setting_text(value: Any) -> str:
    """A value in a name or a table: 0.001, 1e-05, True, None."""
    if isinstance(value, tuple | list):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def point_text(settings: Mapping[str, Any]) -> str:
    """The values of a combination in one line: optimizer.lr=0.001, batch_tokens=2048."""
    return ", ".join(f"{key}={setting_text(value)}" for key, value in settings.items())


def _key(name: str, option: str) -> str:
    key = name.removeprefix("--").replace("-", "_")
    key = _OTHER_NAMES.get(key, key)
    if key in _OF_THE_SWEEP:
        raise ValueError(f"{option} {key} is for the sweep to decide; give {_OF_THE_SWEEP[key]}")
    return key


def _check_once(words: Sequence[str], axes: Sequence[Axis]) -> None:
    """Raises: ValueError if a setting is varied twice, or also given to all runs."""
    names = [axis.setting for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is varied twice; give all its values in one --set")
        flag = _flag(name)
        if any(word.partition("=")[0].replace("_", "-") == flag for word in words):
            raise ValueError(f"{flag} is given to all runs and varied too; give one of the two")


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _words(setting: str, value: str, base: Config) -> list[str]:
    """The words that give a setting this value. A list of values is separated by spaces."""
    if isinstance(_value(base, setting), tuple):
        return [_flag(setting), *shlex.split(value)]
    return [f"{_flag(setting)}={value}"]


def _value(config: Config, setting: str) -> Any:
    """The value of a setting; None if the configuration does not have it."""
    if setting == "optimizer":
        return optimizer_name(config.optimizer)
    found: Any = config
    for part in setting.split("."):
        found = getattr(found, part, None)
    return str(found) if isinstance(found, Path) else found


def _name(settings: Mapping[str, Any]) -> str:
    """The name of the folder of a combination, without its seed."""
    parts = (f"{key}={setting_text(value)}" for key, value in settings.items())
    name = re.sub(r"[^\w.,=+-]", "_", ",".join(parts), flags=re.ASCII)
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(point_text(settings).encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}_{digest}"


def _with_seed(trial: Trial, seed: int, out: Path) -> Trial:
    """The same run with another seed, in another folder."""
    words = (*trial.words[:-4], "--seed", str(seed), "--out", str(out))
    return Trial(out.name, words, replace(trial.config, seed=seed, out=out))
