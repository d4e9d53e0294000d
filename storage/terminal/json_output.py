"""`--json FILE` of every script writes a file; `--json -` writes to standard output.

A bare `--json`, which was a switch of some scripts, means `--json -`.
"""

import codecs
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from storage.atomic import write_json
from storage.option_values import check_output_file
from storage.terminal.printable import printable_json

STANDARD_OUTPUT = Path("-")
_OLD_VALUES = {"True": "-", "true": "-", "False": "None", "false": "None"}


def with_json_target(options: Any, words: Sequence[str], positional: bool) -> list[str]:
    """The words of a command line, with `-` after a bare `--json`; `--no-json` is `--json None`.

    `options` is the dataclass that describes the command line, or an instance of it;
    `positional`: whether it has an option without a name.
    """
    rest = list(words)
    if not is_dataclass(options) or all(
        f.name != "json" or f.type is bool for f in fields(options)
    ):
        return rest
    rewritten: list[str] = []
    while rest and rest[0] != "--":
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word == "--no-json":
            rewritten += ["--json", "None"]
        elif option != "--json":
            rewritten.append(word)
        elif equals:
            rewritten += [option, _OLD_VALUES[value]] if value in _OLD_VALUES else [word]
        elif _is_bare(rest, positional):
            rewritten += [option, "-"]
        else:
            value = rest.pop(0)
            rewritten += [option, _OLD_VALUES.get(value, value)]
    return rewritten + rest


def _is_bare(rest: Sequence[str], positional: bool) -> bool:
    """Whether the words that follow a `--json` begin with no value of it."""
    if not rest or (rest[0].startswith("-") and rest[0] != "-"):
        return True
    # No folder can be the file to write: it is a positional option that follows the switch.
    return positional and os.path.isdir(rest[0])


def check_json_target(path: Path | None) -> None:
    """Raises: ValueError if no file can be written to the path, before the work that fills it."""
    if path != STANDARD_OUTPUT:
        check_output_file("--json", path)


def reserve_standard_output(path: Path | None) -> None:
    """If JSON goes to standard output, log messages go to standard error from now on."""
    if path == STANDARD_OUTPUT:
        log_to_stderr()


def log_to_stderr() -> None:
    """Send log messages to standard error, because standard output is for something else."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


def write_json_target(path: Path | None, value: Any) -> None:
    """Write a file of indented JSON, or one line of JSON to standard output; None: nothing."""
    if path == STANDARD_OUTPUT:
        sys.stdout.write(json_line(value))
        sys.stdout.flush()
    elif path is not None:
        write_json(path, value)


def json_line(value: Any) -> str:
    """One line of JSON that any terminal shows and standard output's encoding can hold."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return (printable_json(value) if encoding == "utf-8" else json.dumps(value)) + "\n"
