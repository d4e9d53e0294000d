"""What a killed process left unfinished is removed; nothing else is."""

import os
import signal
import socket
import subprocess
import sys

from storage.atomic import new_folder, remove_leftovers
from tests.launching import REPO

WRITER = """
import sys, time
from pathlib import Path
from storage.atomic import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(300)
"""


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_next_export_removes_what_a_killed_one_left(tmp_path):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "out")], cwd=REPO, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    with new_folder(tmp_path / "beside"):
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1  # it is still alive
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with new_folder(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", "beside"}


def test_only_unfinished_things_of_dead_processes_of_this_machine_are_removed(tmp_path):
    host, dead = socket.gethostname(), dead_process()
    kept = [
        f".out.elsewhere.{dead}.partial",
        f".out.{host}.{os.getppid()}.partial",
        f"out.{host}.{dead}.partial",
        f".out.{host}.{dead}",
        "out.partial",
        f".out.{host}.{os.getpid()}.partial",
    ]
    gone = [f".out.{host}.{dead}.partial", f".a b.{host}.{10**30}.partial"]
    for name in [*kept, *gone]:
        (tmp_path / name).mkdir()
    (tmp_path / gone[0] / "weights").write_text("x")
    (tmp_path / f".file.{host}.{dead}.partial").write_text("x")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    remove_leftovers(tmp_path / "no such folder")
