"""Runs torchrun, or parallel/launcher.py, with ranks that are forks of it.

    tests/programs/forking_launcher.py LAUNCHER, then the launcher's words

The launcher is the real one, and a rank has a process, a session, an environment and signals of its
own; it is only spared the seconds in which it would import torch.
"""

import gc
import importlib
import runpy
import sys

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from tests.forked_python import ForkedPython
from tests.launching import PRELOADED


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    # For a line of a log it would look through all modules, a second for each rendezvous.
    dynamic_rendezvous.get_method_name = lambda depth=2: "method"
    SubprocessHandler._popen = lambda self, args, env: ForkedPython(args, env=env)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
