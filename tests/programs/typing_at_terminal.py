"""Types at a script in a terminal: typing_at_terminal.py JSON SCRIPT WORDS.

JSON is a list of pairs: what must appear after the last such text, then the keys to type. Prints
all that the terminal shows, and ends with the script's exit code.
"""

import json
import os
import pty
import runpy
import select
import sys
import time

SECONDS = 60.0  # for each answer, on a busy machine


def main() -> int:
    """Start the script in a terminal, type, and print what it shows."""
    steps = json.loads(sys.argv[1])
    process, terminal = pty.fork()
    if process == 0:
        os.environ["TERM"] = "dumb"
        sys.argv = sys.argv[2:]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
        os._exit(code)
    shown = ""
    for awaited, keys in steps:
        shown = shown_after(terminal, awaited, shown)
        os.write(terminal, keys.encode())
    shown_after(terminal, None, shown)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def shown_after(terminal: int, awaited: str | None, shown: str) -> str:
    """Read and print until this text appears, or to the end; returns what is shown after it."""
    deadline = time.monotonic() + SECONDS
    while awaited is None or awaited not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise SystemExit(f"{awaited!r} did not appear, but {shown!r}")
        try:
            new = os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # as Linux ends a terminal
            new = ""
        if not new:
            break
        sys.stdout.write(new)
        shown += new
    return shown.partition(awaited)[2] if awaited else ""


if __name__ == "__main__":
    sys.exit(main())
