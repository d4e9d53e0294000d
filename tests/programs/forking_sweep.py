"""Runs train/sweep.py, whose process of the imports is a fork of it.

tests/programs/forking_sweep.py, then the words of train/sweep.py
"""

import runpy
import sys
from types import SimpleNamespace

from parallel import warm_process
from tests.forked_python import ForkedPython
from tests.launching import REPO


def main() -> None:
    warm_process.subprocess = SimpleNamespace(Popen=ForkedPython)
    sys.argv[0] = str(REPO / "train/sweep.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
