"""Parses the command line of a run: the name of a preset, then flags that change it.

Without a preset, the settings of the run in the folder that `--out` names are the defaults.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storage.option_values import AtMost
from storage.run_folder import RunFolder
from storage.script_options import parse_known_options, parse_options
from train.checkpoints.branch import run_of_branch
from train.checkpoints.recorded_config import recorded_config
from train.command_line.computed_presets import COMPUTED_PRESETS, FLAGS
from train.command_line.words import given_paths
from train.config import Config
from train.optimizers.registry import OPTIMIZERS, optimizer_name
from train.preflight.initial_weights import with_shape_of_init
from train.presets import PRESETS

_OPTIMIZER = "--optimizer"
_NO_PRESET = "gpt2"
log = logging.getLogger(__name__)


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration that the command line describes.

    `prog` and `description` of the calling script appear in its --help.
    Raises: ValueError for an unknown preset or optimizer, or flags that contradict each other.
    """
    names = ", ".join((*PRESETS, *COMPUTED_PRESETS))
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else _NO_PRESET
    if preset not in PRESETS and preset not in COMPUTED_PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    words = arguments[1:] if named else arguments
    recorded = None if preset in PRESETS and named else _run_of(words, preset)
    start, flags = _with_optimizer(recorded or _preset(preset, words), words)
    title = f"{prog} {preset}"
    text = (
        f"{description} First argument: a preset (default: gpt2), one of {names}; "
        "without one, the settings of a run in --out are the defaults. "
        f"--optimizer NAME: another optimizer with its own defaults, one of {_optimizers()}."
    )
    config, unknown = parse_known_options(start, flags, prog=title, description=text)
    if not named and len(unknown) == 1 and unknown[0] in (*PRESETS, *COMPUTED_PRESETS):
        later = unknown[0]
        if words.count(later) > 1:
            raise ValueError(f"the preset comes first: {prog} {later} …")
        return parse([later, *(w for w in words if w != later)], prog, description)
    if unknown:
        # This says which option is unknown, and what was perhaps meant.
        config = parse_options(start, flags, prog=title, description=text)
    _check_one_length(config, start)
    if recorded is None:
        config = with_shape_of_init(config, _model_fields(flags))
    else:
        log.info("what is not given is as recorded in %s", recorded.out)
    return _with_validation_of(start, config)


def _preset(name: str, words: list[str]) -> Config:
    """The preset with this name. Raises: ValueError if one that is computed lacks something."""
    if name in PRESETS:
        return PRESETS[name]
    if "--help" in words or "-h" in words:  # its settings are not known yet
        return PRESETS[_NO_PRESET]
    given = given_paths(words, FLAGS)
    return COMPUTED_PRESETS[name]({flag: Path(value) for flag, value in given.items()})


def _run_of(words: list[str], preset: str) -> Config | None:
    """The configuration of the run in the folder that `--out` names; None if there is none.

    Then it is that of the run with the checkpoint `--branch`, if that is given. A computed preset
    has a folder of its own if `--out` is not given.
    Raises: ValueError if its config.json is damaged.
    """
    try:
        paths = given_paths(words, ("--out", "--branch"))
        if "--out" not in paths and preset in COMPUTED_PRESETS:
            paths["--out"] = str(_preset(preset, words).out)
    except ValueError:  # which the parser reports
        return None
    found = recorded_config(RunFolder(Path(paths["--out"]))) if "--out" in paths else None
    if found is None and "--branch" in paths:
        with suppress(ValueError):  # it is no checkpoint, which `check_inputs` reports
            found = recorded_config(run_of_branch(Path(paths["--branch"]))[0])
    return found


def _with_optimizer(preset: Config, words: list[str]) -> tuple[Config, list[str]]:
    """The preset with the optimizer that `--optimizer NAME` chooses, and the other words.

    Raises: ValueError for a missing or unknown name.
    """
    # tyro sees only the chosen optimizer, so that --optimizer.lr is a flag and not a sub-command.
    others = []
    remaining = iter(words)
    for word in remaining:
        flag, equals, name = word.partition("=")
        if flag != _OPTIMIZER:
            others.append(word)
            continue
        name = name if equals else next(remaining, "")
        if name not in OPTIMIZERS:
            raise ValueError(
                f"optimizer={name} is not known; give {_OPTIMIZER} and one of {_optimizers()}"
            )
        if name != optimizer_name(preset.optimizer):  # else the preset's own settings remain
            preset = replace(preset, optimizer=OPTIMIZERS[name].config())
    return preset, others


def _optimizers() -> str:
    return ", ".join(OPTIMIZERS)


def _model_fields(words: list[str]) -> Iterator[str]:
    """The fields of the model that the words name."""
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if flag.startswith("--model."):
            name = flag.removeprefix("--model.").removeprefix("no-")
            yield name.replace("-", "_")


def _with_validation_of(start: Config, config: Config) -> Config:
    """The configuration with the preset's number of validation tokens for `auto`."""
    number = start.eval.val_tokens
    if config.eval.val_tokens == "auto" and isinstance(number, AtMost):
        return replace(config, eval=replace(config.eval, val_tokens=number))
    return config


def _check_one_length(config: Config, preset: Config) -> None:
    """Raises: ValueError if the flags give two context lengths that contradict each other."""
    given, of_model = config.context_length, config.model.context_length
    if given not in (None, of_model) and of_model != preset.model.context_length:
        raise ValueError(
            f"context_length={given} and model.context_length={of_model} contradict each other; "
            "give only --context-length"
        )
