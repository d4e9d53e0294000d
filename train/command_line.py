"""The command line of a run: a preset's name, then changes to it."""

import tyro

from train.config import Config
from train.presets import PRESETS


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration on the command line: a preset's name (or none), then changes to it.

    `prog` and `description` are of the script whose command line it is.
    """
    names = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else "gpt2"
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    config = tyro.cli(
        Config,
        default=PRESETS[preset],
        args=arguments[1:] if named else arguments,
        prog=f"{prog} {preset}",
        description=f"{description} First word, default gpt2: {names}.",
        config=(tyro.conf.FlagConversionOff,),
    )
    check_one_length(config, PRESETS[preset])
    return config


def check_one_length(config: Config, preset: Config) -> None:
    """Raises: ValueError if `config`, made of `preset`, was given two context lengths."""
    given, of_model = config.context_length, config.model.context_length
    if given not in (None, of_model) and of_model != preset.model.context_length:
        raise ValueError(
            f"context_length={given} and model.context_length={of_model} say two things; "
            "give only --context-length"
        )
