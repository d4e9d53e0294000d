"""A fork of this process in place of a new Python, which would import torch for seconds."""

import importlib
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from parallel.fork_server import _leave, _run

_NAME = Path("/proc/self/comm")


class ForkedPython(subprocess.Popen[bytes]):
    """Takes the words of `python -u SCRIPT …` or `python -m MODULE …`, and a session of its own.

    Input and output are those of this process.
    """

    def _execute_child(self, args: Any, *more: Any) -> None:
        _, _, _, kept, folder, environment, *_ = more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of the threads of a launcher
            self.pid = os.fork()
        self._child_created = True
        if self.pid == 0:
            _become(environment, kept, folder)
            words = [word for number, word in enumerate(args) if number and word != "-u"]
            if words[0] == "-m":
                sys.argv = words[1:]
                importlib.import_module(words[1]).main()
            _leave(_run(words))


def _become(environment: Mapping[str, str], kept: Iterable[int], folder: str | None) -> None:
    """Be as a new program: a session, these variables, and no other file and no handler."""
    os.setsid()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first = 3
    for last in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(first, last)
        first = last + 1
    os.environ.clear()
    os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    if "RANK" in environment and _NAME.exists():
        _NAME.write_text(f"rank {environment['RANK']}")  # for tests/forked_ranks.py
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", False), write_through=True))
