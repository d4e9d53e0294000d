"""Commands that the pages show, and what reads them: a script's own parser."""

import re
import shlex
import sys

import pytest
import tyro

from tests.launching import REPO
from tests.script_flags import main_of
from train.command_line.parse import parse


def commands_of(page: str) -> list[list[str]]:
    """The commands of a page's code blocks without language, each as words, without comments.

    A block may be part of a list.
    """
    text = (REPO / page).read_text()
    fences = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fences if not language]
    lines = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]
    return [shlex.split(line, comments=True) for line in lines]


def started(words: list[str]) -> tuple[str, list[str]]:
    """What a command starts, a script of ours or a program, and the words after it."""
    while re.match(r"[A-Z_]+=|time$", words[0]):
        words = words[1:]
    if words[0] == "timeout":
        words = words[next(i for i, word in enumerate(words) if word == "python") :]
    if words[0] in ("python", "torchrun", "sbatch"):
        place = next(i for i, word in enumerate(words) if re.search(r"\.(py|sbatch)$", word))
        return words[place], words[place + 1 :]
    return words[0], words[1:]


class _Read(BaseException):
    """A script has read its command line; it goes no further."""


def read_by_its_parser(script: str, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a script read a command line, and nothing more. A mistake ends in SystemExit."""
    if script == "train/main.py":
        parse(words)
        return

    def read(*arguments, plain=tyro.cli, **settings):
        found = plain(*arguments, **settings)
        raise _Read(found[1] if settings.get("return_unknown_args") else [])

    patch.setattr("tyro.cli", read)
    patch.setattr(sys, "argv", [script, *words])
    with pytest.raises(_Read) as reached:
        main_of(script)()
    patch.undo()
    if reached.value.args[0]:
        parse(reached.value.args[0])
