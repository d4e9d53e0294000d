"""Parses the command line of a run: the name of a preset, then flags that change it."""

from dataclasses import replace

from storage.script_options import parse_options
from train.config import Config
from train.optimizers.registry import OPTIMIZERS, optimizer_name
from train.presets import PRESETS

_OPTIMIZER = "--optimizer"


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration that the command line describes.

    `prog` and `description` of the calling script appear in its --help.
    Raises: ValueError for an unknown preset or optimizer.
    """
    names = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else "gpt2"
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    start, flags = _with_optimizer(PRESETS[preset], arguments[1:] if named else arguments)
    config = parse_options(
        start,
        flags,
        prog=f"{prog} {preset}",
        description=f"{description} First argument: a preset (default: gpt2), one of {names}. "
        f"--optimizer NAME: another optimizer with its own defaults, one of {_optimizers()}.",
    )
    _check_one_length(config, PRESETS[preset])
    return config


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


def _check_one_length(config: Config, preset: Config) -> None:
    """Raises: ValueError if the flags give two context lengths that contradict each other."""
    given, of_model = config.context_length, config.model.context_length
    if given not in (None, of_model) and of_model != preset.model.context_length:
        raise ValueError(
            f"context_length={given} and model.context_length={of_model} contradict each other; "
            "give only --context-length"
        )
