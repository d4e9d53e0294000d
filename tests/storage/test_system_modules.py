"""Where Ratchet does not run, a script ends with one sentence that names the systems."""

import pytest

from tests.launching import fresh_python

WINDOWS = """
import runpy, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["train/main.py", "eval/main.py", "data_prep/text.py"])
def test_windows_is_told_which_systems_will_do(script):
    # Without warnings: filelock warns where fcntl is missing, but not on a real Windows.
    done = fresh_python("-W", "ignore", "-c", WINDOWS, script, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Ratchet runs on Linux (and on macOS, without GPUs), and")
    assert done.stderr.endswith("on Windows use WSL 2\n")
    assert done.stderr.count("\n") == 1
