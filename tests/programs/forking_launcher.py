"""Runs torchrun, or parallel/launcher.py, with ranks that are forks of it.

    tests/programs/forking_launcher.py LAUNCHER, then the launcher's words

The launcher is the real one, and a rank has a process, a session, an environment and signals of its
own; it is only spared the seconds in which it would import torch.
"""

import gc
import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
import warnings
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from parallel.fork_server import _leave, _run
from tests.launching import PRELOADED


class ForkedRank(subprocess.Popen[bytes]):
    """What torchrun starts as `python -u SCRIPT WORDS`, without a new interpreter."""

    def _execute_child(self, args: Any, *more: Any) -> None:
        environment = more[5]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of the launcher's threads
            self.pid = os.fork()
        self._child_created = True
        if self.pid == 0:
            become(environment)
            words = list(args[1:])
            while words[0].startswith("-"):
                words.pop(0)
            _leave(_run(words))


def become(environment: dict[str, str]) -> None:
    """What a new program has: a session, these variables, and nothing of the launcher's."""
    os.setsid()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(environment)
    if os.path.exists("/proc/self/comm"):
        with open("/proc/self/comm", "w") as name:
            name.write(f"rank {environment['RANK']}")  # for tests/forked_ranks.py
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", False), write_through=True))


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    SubprocessHandler._popen = lambda self, args, env: ForkedRank(args, env=env)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
