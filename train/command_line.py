"""Parses the command line of a run: the name of a preset, then flags that change it."""

import tyro

from storage.boolean_flags import with_flags
from train.config import Config
from train.presets import PRESETS


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration that the command line describes.

    `prog` and `description` of the calling script appear in its --help.
    Raises: ValueError for an unknown preset.
    """
    names = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else "gpt2"
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    config = tyro.cli(
        Config,
        default=PRESETS[preset],
        args=with_flags(PRESETS[preset], arguments[1:] if named else arguments),
        prog=f"{prog} {preset}",
        description=f"{description} First argument: a preset (default: gpt2), one of {names}.",
    )
    check_one_length(config, PRESETS[preset])
    return config


def check_one_length(config: Config, preset: Config) -> None:
    """Raises: ValueError if the flags set two different context lengths. `preset` has no flags."""
    given, of_model = config.context_length, config.model.context_length
    if given not in (None, of_model) and of_model != preset.model.context_length:
        raise ValueError(
            f"context_length={given} and model.context_length={of_model} contradict each other; "
            "give only --context-length"
        )
