"""Reads the command line of a script into a dataclass; every mistake is one sentence.

tyro finds a mistake. What it prints about it, several lines in a box, becomes one sentence.
"""

import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints, overload

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from storage.boolean_flags import option_names, with_flags
from storage.exit_codes import USER_ERROR
from storage.option_values import about_value, finite_number, own_path, whole_number
from storage.options.short_help import (
    HELP_ALL,
    HELP_FLAGS,
    is_asked_for,
    short_help,
    wrapped_introduction,
)
from storage.options.usual import usual_options
from storage.terminal.json_output import reserve_standard_output, with_json_target
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error

_T = TypeVar("_T")
DataSets = Annotated[
    tyro.conf.Positional[tuple[Path, ...]],
    tyro.conf.arg(metavar="PATH...", help_behavior_hint="(required)"),
]
"""Folders of data sets in front of the options; a script checks that one at least is named."""

_FOOTER = re.compile(r"For full helptext, .*")
# Of what frames an error: lines between its parts, and corners. Some terminals show no box.
_LINE = re.compile(r"[╰╯│─ -]*")
_CURE = re.compile(r"\b(try|give|use) ([a-z]\w*)=(\w+)")
_FRAME = "│ "
_LONGEST_SHOWN = 200


@overload
def parse_options(
    options: type[_T],
    words: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    prefixed: bool = True,
) -> _T: ...


@overload
def parse_options(
    options: _T,
    words: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    prefixed: bool = True,
) -> _T: ...


def parse_options(
    options: Any,
    words: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    prefixed: bool = True,
) -> Any:
    """The options of a script, from the words of its command line (default: sys.argv).

    `options` is a dataclass, or an instance of one whose values are the defaults, or a union of
    sub-commands. `prefixed`: options of a nested dataclass have its name in front.
    A mistake ends the script with one sentence on standard error and exit code 2.
    """
    return _parse(options, words, prog, description, prefixed, others=False)


def parse_known_options(
    options: type[_T] | _T, words: Sequence[str], *, prog: str, description: str | None = None
) -> tuple[_T, list[str]]:
    """The options that `options` describes, and the words that belong to none of them."""
    return _parse(options, words, prog, description, prefixed=True, others=True)


_REGISTRY = ConstructorRegistry()


@_REGISTRY.primitive_rule
def _read_paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: own_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


@_REGISTRY.primitive_rule
def _read_whole_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole_number(words[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda number: [str(number)],
    )


@_REGISTRY.primitive_rule
def _read_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[float] | None:
    if info.type is not float:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: finite_number(words[0]),
        is_instance=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        str_from_instance=lambda number: [str(number)],
    )


def _parse(
    options: Any,
    words: Sequence[str] | None,
    prog: str | None,
    description: str | None,
    prefixed: bool,
    others: bool,
) -> Any:
    tolerate_lost_output()
    words = sys.argv[1:] if words is None else words
    words = with_json_target(options, words, _has_positional(options))
    # An instance holds other defaults than its class.
    default = {} if isinstance(options, type) or not is_dataclass(options) else {"default": options}
    settings: dict[str, Any] = {"prog": prog, "description": description, **default}
    with exit_on_user_error(ValueError):
        _check_text(words)
        words = _with_help(options, words, prog, description, prefixed)
        printed = io.StringIO()
        read: Any = tyro.cli
        try:
            with redirect_stderr(printed), wrapped_introduction(words):
                found = read(
                    type(options) if default else options,
                    args=with_flags(options, words, prefixed) if is_dataclass(options) else words,
                    registry=_REGISTRY,
                    config=() if prefixed else (tyro.conf.OmitArgPrefixes,),
                    return_unknown_args=others,
                    **settings,
                )
            reserve_standard_output(getattr(found, "json", None))
            return found
        except (SystemExit, ValueError) as end:
            if isinstance(end, SystemExit) and end.code != USER_ERROR:
                raise
            names = option_names(options, prefixed) if is_dataclass(options) else ()
            flags = [f"--{name}" for name, _ in names]
            raise ValueError(_sentence(end, printed.getvalue(), words, flags)) from None


def _with_help(
    options: Any, words: Sequence[str], prog: str | None, description: str | None, prefixed: bool
) -> list[str]:
    """Print the usual options if that is what is asked for; else the words, as tyro reads them."""
    described = is_dataclass(options)
    if described and is_asked_for(words) and any(usual_options(options, prefixed)):
        usage = f"{prog or sys.argv[0]} [options]"
        sys.stdout.write(short_help(options, usage, description or "", prefixed=prefixed))
        raise SystemExit(0)
    return [HELP_FLAGS[0] if word == HELP_ALL else word for word in words]


def _has_positional(options: Any) -> bool:
    if not is_dataclass(options):
        return False
    kind = options if isinstance(options, type) else type(options)
    markers = get_args(tyro.conf.Positional[int])[1:]
    hints = get_type_hints(kind, include_extras=True).values()
    return any(
        set(markers) & set(get_args(hint)[1:]) for hint in hints if get_origin(hint) is Annotated
    )


def _check_text(words: Sequence[str]) -> None:
    """Raises: ValueError if a word is not UTF-8: no file of ours could hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(word).decode(errors="backslashreplace")
            raise ValueError(f"{shown} is not UTF-8; rename the file, or type it again") from None


def _sentence(end: BaseException, printed: str, words: Sequence[str], flags: Sequence[str]) -> str:
    """One sentence for what tyro printed in its box."""
    _title, *lines = printed.splitlines() or [""]
    text = " ".join(line.strip(_FRAME) for line in lines if not _LINE.fullmatch(line))
    text = _FOOTER.sub("", " ".join(text.split())).strip()
    if value := re.match(r"Error parsing (\S+): .* Argument helptext: (?:--\S+ )?(\S+)", text):
        return about_value(value[1], value[2], words)
    for error in (end, *_contexts(end)):
        # The sentence of one of our own checks, which tyro has broken into lines.
        if isinstance(error, ValueError):
            return _CURE.sub(lambda cure: _as_flag(cure, flags), str(error))
    return _about_words(text)


def _as_flag(cure: re.Match[str], flags: Sequence[str]) -> str:
    """A cure such as `try n_embd=128` as this script's user types it: `try --model.n-embd 128`."""
    verb, field, value = cure.groups()
    name = field.replace("_", "-")
    own = [f for f in flags if f.removeprefix("--").split(".")[-1] == name]
    return f"{verb} {own[0]} {value}" if len(own) == 1 else cure[0]


def _about_words(text: str) -> str:
    """One sentence for a word that is missing or unknown."""
    if choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected .*\((.*)\)", text):
        choices = choice[3].replace("'", "")
        return f"{choice[2]} {choice[1][:_LONGEST_SHOWN]} is not known; give one of {choices}"
    if flag := re.match(r"Missing value for argument '(.*)'", text):
        return f"{flag[1]} has no value; give one"
    if text.startswith("Missing from "):
        missing = re.findall(r"(--\S+|[A-Z]+) (?:[^a-z ]+ )*(.+?)\.? \(required\)", text)
        return "; ".join(f"{name} is not given: {what}" for name, what in missing)
    if command := re.match(r"(?:Unrec.* Available subcommands: |Expected one of \{)([^.}]*)", text):
        return f"give one of the commands {command[1]}"
    if unknown := re.match(r"Unrecognized options: (.*)", text):
        found, _, meant = unknown[1].partition(" Perhaps you meant: ")
        flags = re.findall(r"--[\w.-]+(?= )", meant)
        cure = f"perhaps you meant {' or '.join(flags[:3])}" if flags else "--help-all lists all"
        return f"there is no option {found[:_LONGEST_SHOWN]}; {cure}"
    return text[:1].lower() + text[1:]


def _contexts(error: BaseException) -> Iterator[BaseException]:
    """What was being handled when `error` was raised, from the newest to the oldest."""
    while error.__context__ is not None:
        error = error.__context__
        yield error
