"""A rank that ends as asked: `RANK:HOW` for each, HOW an exit code, `kill` or `wait`.

    python tests/programs/ending.py FOLDER 0:2 1:wait

Each start leaves a file in FOLDER. A rank that waits exits with code 75 on SIGTERM, as a run does.
"""

import os
import signal
import sys
import time
from pathlib import Path

from storage.exit_codes import PREEMPTED_CODE

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED_CODE))
    rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
    Path(sys.argv[1], f"{rank}.{attempt}").write_text(os.environ["MASTER_ADDR"])
    how = dict(word.split(":") for word in sys.argv[2:])[rank]
    if how == "wait":
        time.sleep(60)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(how))
