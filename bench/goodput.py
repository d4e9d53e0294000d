"""What is left of a run at one fault a minute, and where the seconds of a recovery go.

    python bench/goodput.py --data data/python_docs --minutes 20

A run of real processes under torchrun is killed once a minute, in turn one rank (torchrun starts
all again) and all processes (this script does). Goodput is the time of the steps that count, at
the undisturbed run's median, over all the time from the first step on. Prints Markdown, writes one
JSON.
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

import tyro

from bench.provenance import ROOT, provenance
from parallel.ranks import user_errors
from storage.atomic import write_json
from storage.json_lines import read_lines
from train.resume_proof.kills import POLL_SECONDS, Job, Kill, kill_once

OUT = Path(__file__).resolve().parent / "results" / "goodput.json"
KINDS = ("rank", "all")
STAGES = {
    "survived": "the survivors note it and save",
    "began": "they end, torchrun starts all again",
    "imported": "Python and its imports",
    "met": "the ranks meet",
    "checked": "data and configuration",
    "built": "checkpoint, network, buckets",
    "rehearsed": "rehearsal",
    "stepped": "the first step",
}
FLAGS = ("--eval.every", "0", "--eval.tasks-every", "0", "--sample.every", "0", "--save.every", "0")
ENDLESS = 10**6


@dataclass(frozen=True)
class Arguments:
    """Train under faults."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    preset: str = "demo"
    """Run by name; its evaluation and samples are left out."""
    nproc: int = 2
    """Ranks."""
    minutes: float = 20.0
    """How long to go on killing."""
    every_seconds: float = 60.0
    """From one kill to the next, at least."""
    save_seconds: float = 10.0
    """Time between checkpoints; at this rate of faults two minutes would be far too long."""
    calm_steps: int = 200
    """Steps before the first kill, by which an undisturbed step is measured."""
    scratch: Path | None = None
    """Folder to run in; None is the system's for temporary files."""
    out: Path = OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.calm_steps < 2 or self.every_seconds <= 0 or self.minutes <= 0:
            raise ValueError(
                f"calm_steps={self.calm_steps}, every_seconds={self.every_seconds} and "
                f"minutes={self.minutes}: use 2 or more, and more than 0"
            )


def job_of(arguments: Arguments, folder: Path) -> Job:
    """The run, whose stages are noted in `marks.jsonl`."""
    words = [str(folder / "marks.jsonl"), arguments.preset, "--data", str(arguments.data)]
    words += [*FLAGS, "--steps", str(ENDLESS), "--out", str(folder / "run")]
    words += ["--save.every-minutes", str(arguments.save_seconds / 60)]
    restarts = 10 + int(60 * arguments.minutes / arguments.every_seconds)
    script = ROOT / "bench/timed_start.py"
    return Job(words, folder / "run", arguments.nproc, restarts, script)


def shares(marks: list[dict[str, Any]], kill: Kill) -> dict[str, float]:
    """Seconds of each stage of a recovery, each from the slowest rank's last to its own."""
    after = [mark for mark in marks if kill.at <= mark["at"] <= kill.at + kill.seconds]
    found, last = {}, kill.at
    for stage in STAGES:
        times = [mark["at"] for mark in after if mark["stage"] == stage]
        if times:
            found[stage] = max(times) - last
            last = max(times)
    found["line"] = kill.at + kill.seconds - last
    return found


def under_fire(arguments: Arguments, job: Job) -> tuple[list[Kill], float]:
    """Kill in turn until the time is over; the kills, and the seconds from the first step on."""
    dice, kills = random.Random(0), []
    job.start()
    wait_for_steps(job, 1)
    began = time.monotonic()
    wait_for_steps(job, arguments.calm_steps)
    due = time.monotonic()
    end = due + 60 * arguments.minutes
    while due < end:
        kill = kill_once(KINDS[len(kills) % len(KINDS)], job, dice)
        if kill is not None:
            kills.append(kill)
            sys.stderr.write(
                f"kill {len(kills)}: {kill.victim} at step {kill.step}, on from {kill.resumed} "
                f"after {kill.seconds:.1f} s\n"
            )
        due += arguments.every_seconds
        while time.monotonic() < due and job.running.poll() is None:
            time.sleep(POLL_SECONDS)
        if job.running.poll() is not None:
            raise RuntimeError(f"the run ended by itself:\n{job.log.read_text()[-3000:]}")
    return kills, time.monotonic() - began


def wait_for_steps(job: Job, steps: int) -> None:
    """Until so many are done. Raises: RuntimeError if the run ends before."""
    while job.steps_done() < steps:
        if job.running.poll() is not None:
            raise RuntimeError(f"the run ended by itself:\n{job.log.read_text()[-3000:]}")
        time.sleep(POLL_SECONDS)


def measure(arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Run, kill, and sum up."""
    job = job_of(arguments, folder)
    try:
        kills, seconds = under_fire(arguments, job)
        steps = job.steps_done()
    finally:
        job.end()
    milliseconds = calm_milliseconds(read_lines(folder / "run" / "metrics.jsonl"), arguments)
    marks = read_lines(folder / "marks.jsonl")
    told = [asdict(k) | {"repeated": k.lost, "stages": shares(marks, k)} for k in kills]
    return {
        "seconds": seconds,
        "steps": steps,
        "step_milliseconds": milliseconds,
        "goodput": steps * milliseconds / 1000 / seconds,
        "kills": told,
    }


def calm_milliseconds(lines: Sequence[dict[str, Any]], arguments: Arguments) -> float:
    """Median time of a step before the first kill, without the first, which also compiles."""
    return statistics.median(
        line["speed/step_milliseconds"]
        for line in lines
        if 0 < line["step"] < arguments.calm_steps and "speed/step_milliseconds" in line
    )


def medians(kills: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Of seconds, repeated steps and every stage after kills of one kind."""
    mine = [kill for kill in kills if kill["kind"] == kind]
    rows = [kill["stages"] | {k: kill[k] for k in ("seconds", "repeated")} for kill in mine]
    keys = ("seconds", "repeated", *STAGES, "line")
    return {key: statistics.median(row.get(key, 0.0) for row in rows) for key in keys}


def table_of(found: dict[str, Any]) -> str:
    """Goodput, and the recoveries by kind, as Markdown."""
    kinds = [kind for kind in KINDS if any(k["kind"] == kind for k in found["kills"])]
    columns = [medians(found["kills"], kind) for kind in kinds]
    heads = {"rank": "one rank killed", "all": "all killed"}
    names = {"seconds": "**from the kill to the next step's line**"} | STAGES
    names |= {"line": "its line", "repeated": "steps repeated"}
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
    """Measure, report."""
    with user_errors():
        arguments = tyro.cli(Arguments, description=__doc__)
    origin = provenance(("torch",))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        found = measure(arguments, Path(folder))
    sys.stdout.write(table_of(found) + "\n")
    names = ("preset", "nproc", "minutes", "every_seconds", "save_seconds")
    settings = {name: getattr(arguments, name) for name in names}
    write_json(arguments.out, origin | settings | found)


if __name__ == "__main__":
    main()
