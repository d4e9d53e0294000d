"""Runs train/main.py and writes down when each stage of its start and of its end is done.

    python bench/timed_start.py MARKS.jsonl [arguments of train/main.py]

bench/goodput.py runs it under torchrun. It replaces functions of the trainer by ones that also
write a line to MARKS.jsonl when they return: process, rank, stage, Unix seconds. A stage is written
only the first time.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from parallel.ranks import rank_from_environment, start
from train.main import main
from train.recovery.ending import emergency_checkpoint, finish
from train.step import Learner

# A function of the module that makes a call, the name that it calls, and the stage that ends then.
STAGES = [
    (main, "start", "joined"),
    (start, "rendezvous", "met"),
    (main, "check_inputs", "checked"),
    (main, "build_run", "built"),
    (main, "dry_run", "rehearsed"),
    (finish, "emergency_checkpoint", "survived"),
    (emergency_checkpoint, "write_checkpoint", "wrote"),
    (finish, "_close", "closed"),
]


def _began_at() -> float:
    """When the kernel started this process, in Unix seconds with a resolution of 10 ms."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


class Marks:
    """The file of marks. Each line is one write, so that several processes can share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[str] = set()

    def note(self, stage: str, at: float | None = None) -> None:
        """Write that a stage has ended, unless this process has already written it."""
        if stage in self.seen:
            return
        self.seen.add(stage)
        moment = time.time() if at is None else at
        line = {"pid": os.getpid(), "rank": rank_from_environment(), "stage": stage, "at": moment}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def after(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, extended by a note when it returns."""

        @wraps(function)
        def noting(*arguments: Any, **named: Any) -> Any:
            found = function(*arguments, **named)
            self.note(stage)
            return found

        return noting


if __name__ == "__main__":
    if sys.argv[1:2] in ([], ["-h"], ["--help"]):
        sys.stdout.write(str(__doc__))
        sys.exit(0 if sys.argv[1:] else 2)
    _marks = Marks(Path(sys.argv.pop(1)))
    _marks.note("began", _began_at())
    _marks.note("imported")
    for caller, name, stage in STAGES:
        names = caller.__globals__  # of the module in which `caller` looks `name` up
        names[name] = _marks.after(names[name], stage)
    Learner.step = _marks.after(Learner.step, "stepped")  # type: ignore[method-assign]
    main()
