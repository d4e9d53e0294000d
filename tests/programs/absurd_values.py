"""Runs the `main` of a script with absurd values for each of its flags, one after another.

Reads the name of the script from standard input. Prints as JSON what came of each command line: the
exit code (null: it did not end), its standard error, and the files that it left. A run is checked
against its data, but not built; nothing is computed with the others' small inputs for long.
"""

import importlib
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import cycle
from pathlib import Path
from types import FrameType
from typing import Any

from tyro._parsers import ParserSpecification

from eval.watching import watch
from tests.golden.make import furnished
from tests.script_flags import COMMANDS, flags_of, main_of, words_with

SECONDS = 20  # only against a hang: a wrong word is found in milliseconds
# What each script would begin once all of its input is known to be right.
BEGINNINGS = {
    "train/main.py": "build_run",
    "train/prove_resume.py": "prove",
    "train/sweep.py": "run_sweep",
    "eval/calibrate.py": "_load_published",
    "data_prep/text.py": "run_preparation",
    "data_prep/fineweb.py": "run_preparation",
    "data_prep/tinystories.py": "run_preparation",
}
MEANT_BY_NOBODY = {
    int: ["-1", "0", str(10**12), str(2**64 - 1), str(-(2**63))],
    float: ["-1", "0", "1e308", "5e-324", "-1e308"],
    str: ["", "x" * 5000, "\x1b[31m\n", "a_folder", "/dev/null", "=", "0:" + "9" * 40, "~"],
    Path: ["a_file", "a_folder", "/dev/null", "a_file/below", "/proc/1/x", "x" * 255, "-", "~/.."],
    bool: [],
}
# Refused in the same place for every flag, so one of them for each flag is enough.
OF_NO_KIND = ["nan", "inf", "", "many", "\udcff", str(2**64), "9" * 5000, "~no_user/x", "x" * 300]


def command_lines(script, command):
    """One for each flag and each value that it might get."""
    others = cycle(OF_NO_KIND)
    for flag in flags_of(script, command):
        values = [v for kind in flag.types for v in MEANT_BY_NOBODY.get(kind, [])]
        if script == "train/doctor.py":  # its flags are those of train/main.py
            values = []
        for value in [*dict.fromkeys(values), next(others)]:
            yield words_with(script, command, flag, value)


def with_one_parser() -> None:
    """Let tyro describe equal options once: it takes most of the time of a command line."""
    describe, described = ParserSpecification.from_callable_or_type, {}

    def from_callable_or_type(options: Any, **settings: Any) -> ParserSpecification:
        if settings["intern_prefix"]:
            return describe(options, **settings)
        key = repr((options, settings["default_instance"], settings["description"]))
        if key not in described:
            described[key] = describe(options, **settings)
        return described[key]

    ParserSpecification.from_callable_or_type = from_callable_or_type


class TooLong(BaseException):
    """A command line was not refused and did not end either."""


def end(number: int, frame: FrameType | None) -> None:
    raise TooLong


def begun(*_, **__):
    raise SystemExit(0)


def tried(main, words, folder):
    """Exit code, standard error and new files of one call."""
    before = set(folder.rglob("*"))
    printed = io.StringIO()
    code = 0
    signal.alarm(SECONDS)
    try:
        with redirect_stderr(printed), redirect_stdout(io.StringIO()):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    except TooLong:
        code = None
    except BaseException:
        code = 1
        printed.write(traceback.format_exc())
    finally:
        signal.alarm(0)
    new = sorted(set(folder.rglob("*")) - before, reverse=True)
    for path in new:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()
    names = [str(path.relative_to(folder)) for path in new]
    return {"words": words, "code": code, "stderr": printed.getvalue(), "new": names}


def main():
    script = sys.stdin.read().strip()
    out = sys.stdout
    lines = [line for c in COMMANDS.get(script, ("",)) for line in command_lines(script, c)]
    if name := BEGINNINGS.get(script):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        assert hasattr(module, name), name
        setattr(module, name, begun)
    with_one_parser()
    watch._POLL_SECONDS = 0.05  # what is watched is not there
    signal.signal(signal.SIGALRM, end)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        furnished(Path(folder))
        Path("a_file").write_text("no text\n")
        Path("a_folder").mkdir()
        results = []
        for words in lines:
            sys.argv = [script, *words]
            results.append(tried(main_of(script), words, Path(folder)))
        os.chdir("/")
    out.write("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
