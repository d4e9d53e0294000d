"""Goodput of a run with one fault a minute, and how long each stage of a recovery takes.

    python bench/goodput.py --data data/python_docs --minutes 20

It starts a run under torchrun and kills it once a minute. Kills alternate between one rank, after
which torchrun restarts all ranks, and all processes, which this script starts again. Goodput is the
number of steps that the run has at the end, times the median time of an undisturbed step, divided
by the wall time since the first step. Prints Markdown and writes one JSON file.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.provenance import RESULTS, ROOT, provenance
from parallel.ranks import user_errors
from storage.atomic import write_json
from storage.json_lines import read_lines
from storage.script_options import parse_options
from train.recovery.resume_proof.kills import POLL_SECONDS, Job, Kill, kill_once

_OUT = RESULTS / "goodput.json"
_KINDS = ("rank", "all")
# The stages of a recovery in their order, by the names that bench/timed_start.py writes, each with
# what happens in it.
STAGES = {
    "survived": "the remaining ranks notice the kill and save",
    "began": "they exit, new processes start",
    "imported": "Python and its imports",
    "met": "rendezvous of the ranks",
    "checked": "checks of data and configuration",
    "built": "checkpoint, network, buckets",
    "rehearsed": "dry run",
    "stepped": "the first step",
}
_FLAGS = (
    "--eval.every",
    "0",
    "--eval.tasks-every",
    "0",
    "--sample.every",
    "0",
    "--save.every",
    "0",
)
_ENDLESS = 10**6


@dataclass(frozen=True)
class Arguments:
    """Train while processes are killed, and measure the goodput."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    preset: str = "demo"
    """Preset of the run, without its evaluation and samples."""
    nproc: int = 2
    """Number of ranks."""
    minutes: float = 20.0
    """Minutes in which kills happen."""
    every_seconds: float = 60.0
    """Seconds from one kill to the next, at least."""
    save_seconds: float = 10.0
    """Seconds between checkpoints. The usual two minutes are too long for a fault each minute."""
    calm_steps: int = 200
    """Steps before the first kill. They give the median time of an undisturbed step."""
    scratch: Path | None = None
    """Folder for the run; default: the system's temporary folder."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.calm_steps < 2 or self.every_seconds <= 0 or self.minutes <= 0:
            raise ValueError(
                f"calm_steps={self.calm_steps}, every_seconds={self.every_seconds} and "
                f"minutes={self.minutes} are too small; use calm_steps of 2 or more, the others "
                "above 0"
            )


def _job_of(arguments: Arguments, folder: Path) -> Job:
    """The run. Its processes write the time of each stage to `marks.jsonl`."""
    words = [str(folder / "marks.jsonl"), arguments.preset, "--data", str(arguments.data)]
    words += [*_FLAGS, "--steps", str(_ENDLESS), "--out", str(folder / "run")]
    words += ["--save.every-minutes", str(arguments.save_seconds / 60)]
    restarts = 10 + int(60 * arguments.minutes / arguments.every_seconds)
    script = ROOT / "bench/timed_start.py"
    return Job(words, folder / "run", arguments.nproc, restarts, script)


def stage_seconds(marks: list[dict[str, Any]], kill: Kill) -> dict[str, float]:
    """Seconds of each stage of a recovery. A stage ends when the slowest rank has ended it."""
    after = [mark for mark in marks if kill.at <= mark["at"] <= kill.at + kill.seconds]
    found, last = {}, kill.at
    for stage in STAGES:
        times = [mark["at"] for mark in after if mark["stage"] == stage]
        if times:
            found[stage] = max(times) - last
            last = max(times)
    found["line"] = kill.at + kill.seconds - last
    return found


def _run_with_kills(arguments: Arguments, job: Job) -> tuple[list[Kill], float]:
    """Start the run and kill it until the time is over.

    Returns the kills, and the seconds since the first step. Raises: RuntimeError if the run ends.
    """
    generator, kills = random.Random(0), []
    job.start()
    _wait_for_steps(job, 1)
    began = time.monotonic()
    _wait_for_steps(job, arguments.calm_steps)
    due = time.monotonic()
    end = due + 60 * arguments.minutes
    while due < end:
        kill = kill_once(_KINDS[len(kills) % len(_KINDS)], job, generator)
        if kill is not None:
            kills.append(kill)
            sys.stderr.write(
                f"kill {len(kills)}: {kill.victim} at step {kill.step}, resumed at step "
                f"{kill.resumed} after {kill.seconds:.1f} s\n"
            )
        due += arguments.every_seconds
        while time.monotonic() < due and job.running.poll() is None:
            time.sleep(POLL_SECONDS)
        if job.running.poll() is not None:
            raise RuntimeError(f"the run ended by itself:\n{job.log.read_text()[-3000:]}")
    return kills, time.monotonic() - began


def _wait_for_steps(job: Job, steps: int) -> None:
    """Wait until the run has done `steps` steps. Raises: RuntimeError if it ends before."""
    while job.steps_done() < steps:
        if job.running.poll() is not None:
            raise RuntimeError(f"the run ended by itself:\n{job.log.read_text()[-3000:]}")
        time.sleep(POLL_SECONDS)


def _measure(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Run with kills; returns the goodput and the recovery from each kill."""
    job = _job_of(arguments, folder)
    try:
        kills, seconds = _run_with_kills(arguments, job)
        steps = job.steps_done()
    finally:
        job.end()
    milliseconds = _calm_milliseconds(read_lines(folder / "run" / "metrics.jsonl"), arguments)
    marks = read_lines(folder / "marks.jsonl")
    recoveries = [
        asdict(kill) | {"repeated": kill.lost, "stages": stage_seconds(marks, kill)}
        for kill in kills
    ]
    return {
        "seconds": seconds,
        "steps": steps,
        "step_milliseconds": milliseconds,
        "goodput": steps * milliseconds / 1000 / seconds,
        "kills": recoveries,
    }


def _calm_milliseconds(lines: Sequence[dict[str, Any]], arguments: Arguments) -> float:
    """Median time of a step before the first kill, without step 0, which also compiles."""
    return statistics.median(
        line["speed/step_milliseconds"]
        for line in lines
        if 0 < line["step"] < arguments.calm_steps and "speed/step_milliseconds" in line
    )


def _medians(kills: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Medians of the seconds, the repeated steps and each stage, over kills of one kind."""
    same = [kill for kill in kills if kill["kind"] == kind]
    rows = [kill["stages"] | {k: kill[k] for k in ("seconds", "repeated")} for kill in same]
    keys = ("seconds", "repeated", *STAGES, "line")
    return {key: statistics.median(row.get(key, 0.0) for row in rows) for key in keys}


def table_of(found: dict[str, Any]) -> str:
    """Goodput, and the recoveries from each kind of kill, as Markdown."""
    kinds = [kind for kind in _KINDS if any(k["kind"] == kind for k in found["kills"])]
    columns = [_medians(found["kills"], kind) for kind in kinds]
    heads = {"rank": "one rank killed", "all": "all killed"}
    names = {"seconds": "**from the kill to the metric line of the next step**"} | STAGES
    names |= {"line": "its metric line", "repeated": "steps repeated"}
    rows = [
        f"| seconds, median | {' | '.join(heads[kind] for kind in kinds)} |",
        f"| --- |{' --: |' * len(kinds)}",
        *(
            f"| {name} | {' | '.join(f'{column[key]:.2f}' for column in columns)} |"
            for key, name in names.items()
        ),
    ]
    text = (
        f"goodput {found['goodput']:.1%}: {found['steps']} steps of "
        f"{found['step_milliseconds']:.1f} ms in {found['seconds']:.0f} s, "
        f"{len(found['kills'])} kills"
    )
    return "\n".join([*rows, "", text])


def main() -> None:
    """Run with kills, print the table, write the JSON file."""
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
    origin = provenance(("torch",))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        found = _measure(arguments, Path(folder))
    sys.stdout.write(table_of(found) + "\n")
    names = ("preset", "nproc", "minutes", "every_seconds", "save_seconds")
    settings = {name: getattr(arguments, name) for name in names}
    write_json(arguments.out, origin | settings | found)


if __name__ == "__main__":
    main()
