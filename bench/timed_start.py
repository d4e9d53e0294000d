"""train/main.py itself, noting when each stage of its start and of its end is over.

    python bench/timed_start.py MARKS.jsonl [arguments of train/main.py]

bench/goodput.py runs it under torchrun. A line a stage: process, rank, stage, Unix seconds.
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

# Where train/main.py and what it calls look a function up, and the stage that ends with it.
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


def began_at() -> float:
    """When the kernel began this process, in Unix seconds (to a hundredth)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age


class Marks:
    """The file of marks; a line is one write, so that processes can share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[str] = set()

    def note(self, stage: str, at: float | None = None) -> None:
        """Write down that a stage is over, the first time that it is."""
        if stage in self.seen:
            return
        self.seen.add(stage)
        moment = time.time() if at is None else at
        line = {"pid": os.getpid(), "rank": rank_from_environment(), "stage": stage, "at": moment}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def after(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, which notes when it is done."""

        @wraps(function)
        def noting(*arguments: Any, **named: Any) -> Any:
            found = function(*arguments, **named)
            self.note(stage)
            return found

        return noting


if __name__ == "__main__":
    marks = Marks(Path(sys.argv.pop(1)))
    marks.note("began", began_at())
    marks.note("imported")
    for caller, name, stage in STAGES:
        place = caller.__globals__
        place[name] = marks.after(place[name], stage)
    Learner.step = marks.after(Learner.step, "stepped")  # type: ignore[method-assign]
    main()
