"""Weights to start from (`--init`): they decide the shape, and the context may be shorter."""

import logging
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

from data_prep.dataset.shards import DataSet
from data_prep.tokenizer import load_tokenizer
from model.checkpoint import load_config
from model.checkpoint_source import find_checkpoint
from model.config import GPTConfig
from parallel.ranks import cache_folder
from storage.run_folder import RunFolder
from train.checkpoints.recorded_config import recorded_settings
from train.config import Config

log = logging.getLogger(__name__)
_SHOWN_FILES = 5
_NO_SHAPE = {"context_length", "dropout"}  # the context may be shorter, see `check_init`


@cache
def checkpoint_of_init(named: Path) -> Path:
    """The checkpoint that `--init` means: the same one for as long as this process lives."""
    return find_checkpoint(named, cache_folder())


def with_shape_of_init(config: Config, given: Iterable[str]) -> Config:
    """The configuration with the shape of the model in `--init`.

    `given` are the fields of the model that the command line names.
    Raises: ValueError if one of them contradicts the checkpoint.
    """
    if config.init is None:
        return config
    init = config.init
    with suppress(ValueError, OSError):  # `check_init` says what is wrong with it
        init = checkpoint_of_init(init)
    try:
        shape = load_config(init)
    except ValueError:
        return config
    given = set(given)
    _check_contradiction(config.init, shape, config.model, given)
    length = config.context_length
    if length is None and "context_length" in given:
        length = config.model.context_length
    # The vocabulary is that of the data's tokenizer, which `check_init` compares.
    vocab_size = config.model.vocab_size if "vocab_size" in given else GPTConfig.vocab_size
    model = replace(
        shape,
        context_length=length or shape.context_length,
        vocab_size=vocab_size,
        dropout=config.model.dropout,
    )
    return replace(config, model=model)


def with_recorded_init(config: Config) -> Config:
    """The configuration with the checkpoint that the run in `--out` began with.

    It counts only if `--init` names it too: the same name, its run, or what it was imported from.
    """
    before = None
    with suppress(ValueError):  # of a damaged config.json, which `check_inputs` reports
        before = (recorded_settings(RunFolder(config.out)) or {}).get("init")
    if config.init is None or not isinstance(before, str) or before == str(config.init):
        return config
    if not _means(config.init, Path(before)):
        return config
    log.info("the run in %s began with --init %s, and continues", config.out, before)
    return replace(config, init=Path(before))


def _means(named: Path, checkpoint: Path) -> bool:
    """Whether two names mean one checkpoint, two of the same run, or a run and one of its own."""
    here, there = named.absolute(), checkpoint.absolute()
    folder = RunFolder(there.parent.parent).checkpoints
    if here in there.parents or there in here.parents or here.parent == there.parent == folder:
        return True
    with suppress(ValueError, OSError):
        return checkpoint_of_init(named) == checkpoint_of_init(checkpoint)
    return False


def check_init(init: Path, data: DataSet, network: GPTConfig) -> None:
    """Raises: ValueError if the checkpoint does not fit the data or the network."""
    init = checkpoint_of_init(init)
    check_tokenizer(init, data)
    shape = load_config(init)
    check_positions(init, shape, network.context_length)
    _check_contradiction(init, shape, network, {f.name for f in fields(GPTConfig)})


def check_positions(init: Path, shape: GPTConfig, context_length: int) -> None:
    """Raises: ValueError if a context is longer than the checkpoint's learned positions."""
    if shape.position == "learned" and context_length > shape.context_length:
        raise ValueError(
            f"--init {init} has positions for {shape.context_length} tokens, and a context of "
            f"{context_length} needs more; give --context-length {shape.context_length} or less"
        )


def check_tokenizer(init: Path, data: DataSet) -> None:
    """Raises: ValueError if the data were made with another tokenizer than the checkpoint's."""
    if load_tokenizer(init / "tokenizer").ranks_sha256 != data.tokenizer().ranks_sha256:
        raise ValueError(
            f"--init {init} was trained with another tokenizer than {data.folder}; prepare the "
            f"data with the checkpoint's: {_preparation(data, init / 'tokenizer')}"
        )


def _preparation(data: DataSet, tokenizer: Path) -> str:
    """The command that prepares the same text with this tokenizer, as far as it is known."""
    manifest = data.manifest
    out = shlex.join(["--tokenizer", str(tokenizer), "--out", f"{data.folder}-for-init"])
    names = [file.name for file in manifest.source.files]
    if manifest.source.id == "python-documentation":
        return f"python data_prep/text.py --embedded {out}"
    if manifest.source.id != "files" or len(names) > _SHOWN_FILES:
        return f"the command that made them, with {out}"
    split = manifest.settings.get("split", "hash")
    return f"python data_prep/text.py {shlex.join(names)} --split {split} {out}"


def _check_contradiction(
    init: Path, shape: GPTConfig, wanted: GPTConfig, names: Iterable[str]
) -> None:
    """Raises: ValueError if a named field differs, but for those that decide no weight."""
    differing = [
        name
        for name in sorted(set(names) - _NO_SHAPE)
        if getattr(shape, name) != getattr(wanted, name)
        and _normal(shape, name) != _normal(wanted, name)
    ]
    if differing:
        own = " ".join(_flag(name, shape) for name in differing)
        asked = " ".join(_flag(name, wanted) for name in differing)
        raise ValueError(
            f"--init {init} has {own}, which contradicts {asked}; omit it: the checkpoint decides "
            "the shape"
        )


def _normal(shape: GPTConfig, name: str) -> object:
    return shape.hidden_width if name == "mlp_width" else getattr(shape, name)


def _flag(name: str, shape: GPTConfig) -> str:
    """A field of the shape as a user would type it."""
    value, flag = _normal(shape, name), name.replace("_", "-")
    if isinstance(value, bool):
        return f"--model.{flag}" if value else f"--model.no-{flag}"
    return f"--model.{flag} {value}"
