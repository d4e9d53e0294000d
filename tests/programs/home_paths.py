"""Prints, as JSON, every option of every script that is a path, with what `~/x` becomes.

Nothing of a script is run but the reading of its command line.
"""

import json
import os
import sys
import tempfile
from dataclasses import fields, is_dataclass
from pathlib import Path

import tyro

from tests.script_flags import COMMANDS, SCRIPTS, flags_of, main_of, words_with


class Read(BaseException):
    """A script has read its command line."""


def values_in(options):
    """All values in a dataclass, and in the dataclasses in it."""
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            yield from values_in(value)
        else:
            yield from value if isinstance(value, tuple) else (value,)


def becomes(script, command, flag):
    """The path that the script reads; None if it reads none."""
    sys.argv = [script, *words_with(script, command, flag, "~/x")]
    try:
        main_of(script)()
    except Read as read:
        options = read.args[0]
        found = values_in(options[0] if isinstance(options, tuple) else options)
        return next((str(p) for p in found if isinstance(p, Path) and p.name == "x"), None)


def main():
    read = tyro.cli

    def record(*words, **settings):
        raise Read(read(*words, **settings))

    places = [
        (script, command, flag)
        for script in SCRIPTS
        for command in COMMANDS.get(script, ("",))
        for flag in flags_of(script, command)
        if Path in flag.types
    ]
    tyro.cli = record
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("a_file").touch()  # which some scripts need beside the option in question
        found = {f"{s} {c} {flag.name}": becomes(s, c, flag) for s, c, flag in places}
        os.chdir("/")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
