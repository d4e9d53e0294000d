"""CPU time that a sweep adds to its runs, and that it saves at their starts.

    python bench/sweep_cost.py --data data/demo --steps 40 --seeds 3

Runs of the demo are made as one sweep, and again each by itself with train/main.py. Of the sweep
the CPU time of each process is read from /proc: its own, that of the process in whose forks the
runs start, and that of the runs. Prints Markdown and writes one JSON file.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.process_session import Session
from bench.provenance import RESULTS, ROOT, provenance
from parallel.ranks import silence_other_ranks, user_errors
from parallel.warm_process import shared_environment
from storage.atomic import write_json
from storage.script_options import parse_options

_OUT = RESULTS / "sweep_cost.json"
_SAMPLE_SECONDS = 0.25
_RATE = "optimizer.lr"
_VALUE = "0.012"  # the demo's own
_WHOLE_STEPS = 900  # of the demo
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Measure what a sweep adds to its runs."""

    data: Path = Path("data/demo")
    """Data set folder."""
    steps: int = 40
    """Steps of each run."""
    seeds: int = 3
    """Number of runs."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds < 1:
            raise ValueError(f"steps={self.steps} and seeds={self.seeds} must be 1 or more")


def _children(process: int) -> set[int]:
    """The processes that a process has started and that still run."""
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:  # it has just ended
        return set()
    return set(map(int, found.split()))


def _measured(words: list[str]) -> dict[str, float]:
    """Run a script of ours: its CPU seconds, its children's, and those of all others below.

    Raises: ValueError if it fails.
    """
    command = [sys.executable, *words]
    environment = shared_environment(os.cpu_count() or 1)  # one thread
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=nowhere
    )
    session = Session(process.pid, _SAMPLE_SECONDS)
    began = time.monotonic()
    direct: set[int] = set()
    while process.poll() is None:
        direct |= _children(process.pid)
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.monotonic() - began
    total = session.end()
    if process.returncode:
        raise ValueError(f"{' '.join(words)} failed with code {process.returncode}")
    own = session.by_process.get(process.pid, 0.0)
    warm = sum(session.by_process.get(child, 0.0) for child in direct)
    return {"own": own, "warm": warm, "rest": total - own - warm, "wall_seconds": seconds}


def _compared(arguments: Arguments) -> dict[str, Any]:
    """The sweep and the runs by themselves, one after another."""
    shared = ["demo", "--data", str(arguments.data.absolute()), "--device", "cpu"]
    shared += ["--steps", str(arguments.steps), "--eval.tasks-every", "0", "--sample.every", "0"]
    with tempfile.TemporaryDirectory() as folder:
        grid = ["--set", f"{_RATE}={_VALUE}", "--seeds", str(arguments.seeds)]
        sweep = _measured(["train/sweep.py", *shared, *grid, "--out", f"{folder}/sweep"])
        alone = []
        for seed in range(1, arguments.seeds + 1):
            out = ["--seed", str(seed), "--out", f"{folder}/{seed}"]
            alone.append(_measured(["train/main.py", *shared, f"--{_RATE}", _VALUE, *out]))
    return {"sweep": sweep, "alone": alone}


def figures(measured: dict[str, Any], steps: int) -> dict[str, float]:
    """What follows, in CPU seconds and shares."""
    sweep, count = measured["sweep"], len(measured["alone"])
    alone = [run["own"] + run["warm"] + run["rest"] for run in measured["alone"]]
    added = sweep["own"] + sweep["warm"]
    whole = sweep["rest"] / count / steps * _WHOLE_STEPS * count
    return {
        "runs": count,
        "run_alone": sum(alone) / count,
        "run_in_sweep": sweep["rest"] / count,
        "saved_at_each_start": (sum(alone) - sweep["rest"]) / count,
        "added_by_sweep": added,
        "sweep_less_runs_alone": added + sweep["rest"] - sum(alone),
        "share_of_runs": added / sweep["rest"],
        "share_of_whole_demo_runs": added / whole,
    }


def _table_of(found: dict[str, float], steps: int) -> str:
    return "\n".join(
        [
            f"{found['runs']} runs of the demo of {steps} steps, CPU seconds in one thread:",
            "",
            "| | |",
            "| --- | --: |",
            f"| a run by itself | {found['run_alone']:.1f} s |",
            f"| a run in the sweep | {found['run_in_sweep']:.1f} s |",
            f"| saved at each start | {found['saved_at_each_start']:.1f} s |",
            f"| the sweep itself, with its imports | {found['added_by_sweep']:.1f} s |",
            f"| sweep less its runs by themselves | {found['sweep_less_runs_alone']:+.1f} s |",
            f"| the sweep itself, of its runs here | {found['share_of_runs']:.2%} |",
            f"| the same, calculated for {_WHOLE_STEPS} steps | "
            f"{found['share_of_whole_demo_runs']:.2%} |",
        ]
    )


def main() -> None:
    """Measure, print the table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        origin = provenance(("torch",))
        measured = _compared(arguments)
    found = figures(measured, arguments.steps)
    log.info("%s", _table_of(found, arguments.steps))
    settings = {"steps": arguments.steps, "seeds": arguments.seeds, "threads": 1}
    write_json(arguments.out, origin | settings | {"figures": found} | measured)


if __name__ == "__main__":
    main()
