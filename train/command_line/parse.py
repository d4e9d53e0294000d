"""Parses the command line of a run: the name of a preset, then flags that change it.

Without a preset, the settings of the run in the folder that `--out` names are the defaults.
`--continue RUN` takes them from that run, and `--config FILE` from a file.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.order.weights import check_one_mixture
from storage.option_values import AtMost
from storage.options.short_help import is_asked_for
from storage.run_folder import RunFolder
from storage.script_options import parse_known_options, parse_options
from train.checkpoints.branch import run_of_branch
from train.checkpoints.recorded_config import recorded_config
from train.command_line.computed_presets import COMPUTED_PRESETS, FLAGS, own_folder
from train.command_line.config_file import ConfigFile
from train.command_line.continued_run import continued_config
from train.command_line.help_page import first_page, introduction
from train.command_line.words import (
    given_paths,
    places_of,
    taken,
    taken_path,
)
from train.config import Config
from train.optimizers.registry import OPTIMIZERS, optimizer_name
from train.preflight.initial_weights import with_recorded_init, with_shape_of_init
from train.presets import PRESETS

_OPTIMIZER = "--optimizer"
_DATA = "--data"
_NO_PRESET = "gpt2"
_OTHER_NAMES = {"--resume", "--resume-from", "--resume-from-checkpoint", "--restart"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Words:
    """A command line in parts."""

    preset: str | None
    continued: Path | None
    file: ConfigFile | None
    optimizer: str | None
    flags: list[str]
    """The other words, which a parser of the configuration reads."""

    @property
    def wants_help(self) -> bool:
        """Whether they ask for help, so that nothing else need be given."""
        return bool({"-h", "--help", "--help-all"} & {*self.flags})


@dataclass(frozen=True)
class _Start:
    """The settings that the flags change."""

    config: Config
    base: Config
    """The same without those of a file."""
    recorded: Path | None = None
    """The run whose recorded settings these are."""
    known: bool = True
    """Whether the preset's settings are known; some follow from data that are not given yet."""


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration that the command line describes.

    `prog` and `description` of the calling script appear in its --help.
    Raises: ValueError for an unknown preset or optimizer, or flags that contradict each other.
    """
    words = _in_parts(arguments)
    start = _start(words)
    defaults = _with_optimizer(start.config, words.optimizer)
    if is_asked_for(words.flags):
        name = str(start.recorded or words.preset or _NO_PRESET)
        sys.stdout.write(first_page(defaults, name, prog, description, start.known))
        raise SystemExit(0)
    title, text = f"{prog} {words.preset or _NO_PRESET}", introduction(description)
    config, unknown = parse_known_options(defaults, words.flags, prog=title, description=text)
    later = next(filter(_is_preset, unknown), None)
    if words.preset is None and later is not None:
        if arguments.count(later) > 1:
            raise ValueError(f"the preset comes first: {prog} {later} …")
        return parse([later, *(w for w in arguments if w != later)], prog, description)
    if wanted := _OTHER_NAMES & {word.partition("=")[0] for word in unknown}:
        raise ValueError(f"there is no option {wanted.pop()}; --continue RUN continues a run")
    if unknown:
        # This says which option is unknown, and what was perhaps meant.
        config = parse_options(defaults, words.flags, prog=title, description=text)
    _check_one_length(config, start.config)
    if start.recorded is None:
        named = words.file.model_fields if words.file else set()
        config = with_shape_of_init(config, named.union(_model_fields(words.flags)))
    else:
        log.info("what is not given is as recorded in %s", start.recorded)
    return with_recorded_init(_with_validation_of(start.base, config))


def _in_parts(arguments: list[str]) -> _Words:
    """The parts of a command line. Raises: ValueError for an unknown preset or a missing value."""
    continued, rest = taken_path(arguments, "--continue", "the folder of a run, such as runs/demo")
    path, rest = taken_path(rest, "--config", "a .toml or .json file with settings")
    optimizer, rest = taken(rest, _OPTIMIZER)
    rest = [re.sub(r"^--data\.", f"{_DATA}-", word) for word in rest]  # as of a group
    check_one_mixture(rest)
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer={optimizer} is not known; give {_OPTIMIZER} and one of "
            f"{', '.join(OPTIMIZERS)}"
        )
    preset = rest.pop(0) if rest and not rest[0].startswith("-") else _after_data(rest)
    if preset is None and is_asked_for(rest):  # no parser finds it among the flags then
        preset = next(filter(_is_preset, rest), None)
    if preset is not None and not _is_preset(preset):
        raise ValueError(_no_preset(preset))
    return _Words(preset, continued, ConfigFile(path) if path else None, optimizer, rest)


def _after_data(words: list[str]) -> str | None:
    """Take out a preset behind the folders of --data, which would be read as one of them."""
    at = words.index(_DATA) + 2 if _DATA in words else len(words)
    while at < len(words) and not words[at].startswith("-"):
        if _is_preset(words[at]):
            return words.pop(at)
        at += 1
    return None


def _is_preset(word: str) -> bool:
    return word in PRESETS or word in COMPUTED_PRESETS


def _no_preset(word: str) -> str:
    if RunFolder(Path(word)).config.is_file():
        return f"{word} is the folder of a run, not a preset; give --continue {word}"
    if word.endswith((".toml", ".json")):
        return f"{word} is no preset; give --config {word} to take settings from a file"
    names = ", ".join((*PRESETS, *COMPUTED_PRESETS))
    return f"preset {word} is not known; choose one of {names}"


def _start(words: _Words) -> _Start:
    """The settings that the flags change. Raises: ValueError if they cannot be found."""
    start = _continued(words, words.continued) if words.continued else _preset_or_run(words)
    if words.file is None:
        return start
    changed = words.file.over(start.base)
    _check_one_length(changed, start.base)
    return replace(start, config=_with_validation_of(start.base, changed))


def _continued(words: _Words, named: Path) -> _Start:
    """The settings of the run that `--continue` names."""
    if words.preset is not None:
        raise ValueError(
            f"--continue {named} takes all settings from the run, and {words.preset} is a preset; "
            "give one of the two"
        )
    given = given_paths(words.flags, ("--out", "--branch"))
    if "--branch" in given:
        raise ValueError(
            f"--continue {named} continues a run in its folder, and --branch begins another run; "
            "give one of the two"
        )
    config = continued_config(named)
    out = Path(given.get("--out", config.out))
    if out.absolute() != config.out.absolute():
        raise ValueError(
            f"--continue {named} continues a run in its folder, not in --out {out}; omit --out, or "
            f"give --branch {config.out}/checkpoints/latest --out {out} for a new run from there"
        )
    return _Start(config, config, config.out)


def _preset_or_run(words: _Words) -> _Start:
    """The settings of the preset, or of the run in the folder that `--out` names."""
    if words.preset in PRESETS:
        return _Start(PRESETS[words.preset], PRESETS[words.preset])
    run = _run_of(words)
    if run is not None:
        return _Start(run, run, run.out)
    named = words.preset is not None or bool(given_paths(words.flags, ("--out",)))
    if words.file is not None and not named and not words.wants_help:
        words.file.check_new_run()
    config = _preset(words)
    known = words.preset is None or config is not PRESETS[_NO_PRESET]
    return _Start(config, config, known=known)


def _preset(words: _Words) -> Config:
    """The preset's settings. Raises: ValueError if one that is computed lacks something."""
    if words.preset not in COMPUTED_PRESETS:
        return PRESETS[_NO_PRESET]
    given = given_paths(words.flags, FLAGS)
    try:
        paths = {flag: Path(path) for flag, path in given.items()}
        return COMPUTED_PRESETS[words.preset](paths, places_of(words.flags, _DATA))
    except ValueError:
        if not words.wants_help:  # which may be read before there are data
            raise
        return PRESETS[_NO_PRESET]


def _run_of(words: _Words) -> Config | None:
    """The configuration of the run in the folder that `--out` names; None if there is none.

    Then it is that of the run with the checkpoint `--branch`, if that is given. A computed preset
    has a folder of its own if `--out` is not given. Settings from a file replace those of `--out`.
    Raises: ValueError if its config.json is damaged.
    """
    try:
        paths = given_paths(words.flags, ("--out", "--branch", "--data"))
        if "--out" not in paths and words.preset is not None and "--data" in paths:
            paths["--out"] = str(own_folder(words.preset, Path(paths["--data"])))
    except ValueError:  # which the parser reports
        return None
    found = None
    if "--out" in paths and not (words.file and words.preset is None):
        found = recorded_config(RunFolder(Path(paths["--out"])))
    if found is None and "--branch" in paths:
        with suppress(ValueError):  # it is no checkpoint, which `check_inputs` reports
            found = recorded_config(run_of_branch(Path(paths["--branch"]))[0])
    return found


def _with_optimizer(config: Config, name: str | None) -> Config:
    """The configuration with the optimizer of this name; its own keeps its settings."""
    # tyro sees only the chosen optimizer, so that --optimizer.lr is a flag and not a sub-command.
    if name is None or name == optimizer_name(config.optimizer):
        return config
    return replace(config, optimizer=OPTIMIZERS[name].config.defaults_for(config.model))


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
