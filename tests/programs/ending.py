"""A rank that ends as asked: `RANK:HOW`, HOW being an exit code, `kill`, `wait` or `save`.

    python tests/programs/ending.py FOLDER 0:2 1:wait

Each start leaves a file in FOLDER, and no rank ends before all have started. A rank that waits
exits with code 75 on SIGTERM, as a run does before its first step. One that saves goes on until a
second Ctrl-C.
"""

import os
import signal
import sys
import time
from pathlib import Path

from parallel.stop_signals import StopRequest
from storage.exit_codes import INTERRUPTED_CODE, PREEMPTED_CODE


def main() -> None:
    """Start, wait for the others, end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED_CODE))
    folder, rank, attempt = (
        sys.argv[1],
        os.environ["RANK"],
        os.environ["TORCHELASTIC_RESTART_COUNT"],
    )
    how = dict(word.split(":") for word in sys.argv[2:])[rank]
    if how == "save":
        StopRequest(nothing_to_save=False).listen()
    Path(folder, f"{rank}.{attempt}").write_text(os.environ["MASTER_ADDR"])
    while len(list(Path(folder).glob(f"*.{attempt}"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.02)
    if how in ("wait", "save"):
        time.sleep(60)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(how))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_CODE)
