"""The flags of every script, from the dataclass that describes its command line."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from tests.launching import REPO

FOLDERS = ("data_prep", "model", "eval", "train", "bench", "bench/gpu")
NOT_FOR_PEOPLE = {"bench/timed_start.py"}  # bench/goodput.py starts it
SCRIPTS = sorted(
    name
    for folder in FOLDERS
    for path in (REPO / folder).glob("*.py")
    if (name := f"{folder}/{path.name}") not in NOT_FOR_PEOPLE
    and '\nif __name__ == "__main__":' in path.read_text()
)
# First words, each with a command line of its own.
COMMANDS = {"model/huggingface.py": ("import", "export"), "train/main.py": ("demo",)}

# What else a script needs, so that nothing but the flag in question can be wrong. It names the
# small inputs that `furnished` of tests/golden/make.py lays out, or some that are missing where the
# script would work for long.
_NEEDED = {
    "bench/band_alarms.py": ["nowhere"],
    "bench/first_hour.py": ["--nanogpt=nowhere", "--text=nowhere"],
    "bench/gpu/prepare.py": ["nowhere"],
    "bench/hellaswag_speed.py": ["--hellaswag-file=nowhere"],
    "bench/make_band.py": ["nowhere", "--out=new/demo.json"],
    "bench/peers.py": ["--side=a; .; c"],
    "bench/planted_mistakes.py": ["nothing"],
    "bench/scaling.py": ["--step-seconds=1", "--source=nowhere"],
    "bench/tokenizer_agreement.py": ["nowhere", "--text=nowhere"],
    "data_prep/browse.py": ["data"],
    "data_prep/fineweb.py": ["--source=inputs/*.parquet", "--out=new"],
    "data_prep/hf_dataset.py": ["owner/name", "--out=new"],
    "data_prep/ready_tokens.py": ["inputs", "--out=new"],
    "data_prep/tinystories.py": ["--train-files=inputs", "--val-files=inputs", "--out=new"],
    "data_prep/text.py": ["--source=inputs", "--out=new"],
    "data_prep/train_tokenizer.py": ["--source=nowhere.txt", "--out=new"],
    "data_prep/lookup.py": ["data", "--run=run", "--step=1"],
    "data_prep/verify.py": ["data", "--run=run"],
    "eval/calibrate.py": ["--model=./nowhere"],
    "eval/compare.py": ["nowhere", "nowhere"],
    "eval/contamination.py": ["--data=nowhere", "--hellaswag-file=a_file"],
    "eval/generate.py": ["--checkpoint=checkpoint", "--device=cpu", "--max-tokens=1"],
    "eval/lm_eval_model.py": ["--checkpoint=nowhere", "--tasks=blimp"],
    "eval/main.py": ["--checkpoint=nowhere"],
    "model/average.py": ["nowhere", "--out=new"],
    "model/huggingface.py import": ["./nowhere", "--out=new"],
    "model/huggingface.py export": ["nowhere", "--out=new"],
    "train/compare_runs.py": ["run"],
    "train/judge.py": ["nowhere", "nowhere"],
    "train/main.py demo": ["--device=cpu", "--data=data", "--out=new"],
    "train/doctor.py": ["--context-length=2", "--model.context-length=3"],
    "train/prove_resume.py": ["--steps=200"],
    "train/sweep.py": ["--set=steps=2"],
    "train/replay.py": ["nowhere"],
    "train/audit.py": ["nowhere"],
}


@dataclass(frozen=True)
class Flag:
    """One option of a script."""

    name: str
    """As typed, such as --eval.every; a positional one has the name of its field."""
    types: frozenset[Any]
    """What its value may be: int, float, str, bool, Path, or the words of a Literal."""
    several: bool
    """Whether it takes any number of values."""
    required: bool


class _Reached(BaseException):
    """A script would read its command line now."""


def main_of(script: str) -> Any:
    """The function `main` of a script."""
    return importlib.import_module(script.removesuffix(".py").replace("/", ".")).main


def described(script: str, command: str = "") -> tuple[Any, bool]:
    """The dataclass (or an instance with defaults) that describes a command line.

    And whether names of nested options have a prefix.
    """

    def record(options: Any, **settings: Any) -> None:
        raise _Reached(settings.get("default", options), not settings["config"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tyro.cli", record)
        patch.setattr(sys, "argv", [script, *([command] if command else [])])
        with pytest.raises(_Reached) as reached:
            main_of(script)()
    return reached.value.args


@cache
def flags_of(script: str, command: str = "") -> list[Flag]:
    """All options of a script, or of one of its commands."""
    options, prefixed = described(script, command)
    if get_origin(options) in (Union, UnionType):
        kinds = {
            c: get_args(k)[0] for c, k in zip(("import", "export"), get_args(options), strict=True)
        }
        options = kinds[command]
    return list(_flags(options, "", prefixed))


def _flags(options: Any, prefix: str, prefixed: bool) -> Iterator[Flag]:
    hints = get_type_hints(
        options if isinstance(options, type) else type(options), include_extras=True
    )
    for field in fields(options):
        hint = hints[field.name]
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if any("Suppress" in repr(extra) for extra in extras):
            continue
        default = field.default if isinstance(options, type) else getattr(options, field.name)
        named = next((n for extra in extras if (n := getattr(extra, "name", None))), field.name)
        name = named.replace("_", "-")
        if is_dataclass(default):
            unnamed = not prefixed or any(getattr(extra, "name", None) == "" for extra in extras)
            yield from _flags(default, prefix if unnamed else f"{prefix}{name}.", prefixed)
            continue
        positional = any("Positional" in repr(extra) for extra in extras)
        several, types = _types(get_args(hint)[0] if extras else hint)
        yield Flag(
            field.name if positional else f"--{prefix}{name}",
            frozenset(types),
            several,
            default is MISSING and field.default_factory is MISSING,
        )


def _types(hint: Any) -> tuple[bool, set[Any]]:
    """Whether there may be several values, and what one may be."""
    if get_origin(hint) is tuple:
        return True, _types(get_args(hint)[0])[1]
    if get_origin(hint) in (Union, UnionType):
        parts = [_types(part) for part in get_args(hint) if part is not NoneType]
        return any(several for several, _ in parts), set().union(*(kinds for _, kinds in parts))
    if get_origin(hint) is Literal:
        return False, set(get_args(hint))
    return False, {hint}


def words_with(script: str, command: str, flag: Flag, value: str) -> list[str]:
    """A command line that gives the flag this value, and nothing else that could be wrong.

    `--watch` waits for a run that is not there; it is given a minute's fraction to do so.
    """
    words = list(_NEEDED.get(f"{script} {command}".strip(), []))
    if not flag.name.startswith("--"):
        names = [f.name for f in flags_of(script, command) if not f.name.startswith("--")]
        place = names.index(flag.name)
        words[place : place + 1] = [value]
    else:
        instead = {"--watch": "--checkpoint"}.get(flag.name, flag.name)
        words = [word for word in words if word.partition("=")[0] not in (flag.name, instead)]
        words.append(f"{flag.name}={value}")
        words += ["--idle-minutes=0.001"] if flag.name == "--watch" else []
    return [command, *words] if command else words
