"""Presets whose settings follow from the data, a checkpoint and the machine.

They are written like other presets: their name is the first word, every setting is a flag that
changes it, and a run that exists continues with its recorded settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.order.weights import parsed_place
from train.command_line.finetune import finetune_config
from train.command_line.own_text import own_text_config
from train.config import Config

_SIZES = ("--context-length", "--model.context-length", "--batch-tokens", "--steps")
FLAGS = ("--data", "--init", "--out", *_SIZES)
"""What a computed preset may depend on: the values of these flags."""


def _own_text(given: Mapping[str, Path], data: tuple[Path, ...]) -> Config:
    """A run on one's own text."""
    first = _needed(given, "own-text", "--data", "a data set, made by data_prep/text.py")
    return own_text_config(data, given.get("--out") or own_folder("own-text", first))


def _finetune(given: Mapping[str, Path], data: tuple[Path, ...]) -> Config:
    """A run that starts from the weights of `--init`, which also decides the shape."""
    init = _needed(given, "finetune", "--init", "a checkpoint")
    first = _needed(given, "finetune", "--data", "a data set, made with the checkpoint's tokenizer")
    sizes = {flag.removeprefix("--"): str(given[flag]) for flag in _SIZES if flag in given}
    return replace(finetune_config(init, data, sizes), out=own_folder("finetune", first))


COMPUTED_PRESETS: dict[str, Callable[[Mapping[str, Path], tuple[Path, ...]], Config]] = {
    "own-text": _own_text,
    "finetune": _finetune,
}


def own_folder(preset: str, data: Path) -> Path:
    """The run folder of a computed preset where none is given, after the (first) data set."""
    return Path("runs") / f"{parsed_place(data).folder.name}{'-finetuned' * (preset == 'finetune')}"


def _needed(given: Mapping[str, Path], preset: str, flag: str, what: str) -> Path:
    if flag not in given:
        raise ValueError(f"{preset} needs {flag}: {what}")
    return given[flag]
