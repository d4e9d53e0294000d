"""Ends a test cluster when its owner ends for any reason, also by SIGKILL.

    python tests/slurm/keeper.py FOLDER

Waits until standard input is closed, then kills every process whose environment names
FOLDER/slurm.conf (the daemons, the steps and all that jobs have started) and deletes FOLDER.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def marked(*marks: str) -> set[int]:
    """Processes with all these NAME=VALUE in their environment, and the slurmstepds above them.

    A slurmstepd overwrites its own environment with its title. Zombies have none either.
    """
    wanted, found = {mark.encode() for mark in marks}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= {*(process / "environ").read_bytes().split(b"\0")}:
                found.add(int(process.name))
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if Path(f"/proc/{parent}/comm").read_text() == "slurmstepd\n":
                    found.add(int(parent))
    return found


def kill_marked(*marks: str) -> None:
    """Kill these processes like a power failure; repeat until none is left."""
    # SIGSTOP first, so that no process can report the death of another. Repeated, because a process
    # may have started another one in between.
    while pids := marked(*marks):
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.02)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a Ctrl-C ends pytest, and this process after it
    sys.stdin.read()
    kill_marked(f"SLURM_CONF={sys.argv[1]}/slurm.conf")
    shutil.rmtree(sys.argv[1])
