"""Compares the speed of whole trainers, each run by its own command in its own checkout.

    python bench/peers.py --side "ours; .; python train/main.py gpt2 --data data/prose ..." \
        "llm.c; ../llm.c; python train_gpt2.py --model d12 ..."

The trainers alternate (A-B-A-B). bench/README.md has the command of every peer. All are timed in
the same way: this script notes when the log line of each step arrives, leaves out the first steps
(compilation), and divides the tokens of a step by the median time between two lines. It uses no
speed that a trainer prints itself. Prints Markdown and writes one JSON file after every turn.
"""

import logging
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.provenance import RESULTS, provenance
from model.config import GPTConfig
from model.estimates.flops import peak_flops, training_flops_per_token
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options

_OUT = RESULTS / "peers.json"
# The line of a step of: ours, build-nanogpt and both trainers of llm.c; nanoGPT; modded-nanogpt.
_STEP_LINE = re.compile(
    r" *\d+/\d+ +[-+.\dainf]+ +\d\.\d\de|step +\d+(/\d+)? \| (train )?loss"
    r"|iter \d+: loss|step:\d+/\d+ train_time"
)
_GRACE_SECONDS = 20  # from SIGTERM to SIGKILL

log = logging.getLogger("train")


@dataclass(frozen=True)
class Side:
    """One trainer."""

    name: str
    folder: Path
    command: str


@dataclass(frozen=True)
class Arguments:
    """Compare the speed of whole trainers."""

    side: tuple[str, ...]
    """Trainers as "NAME; FOLDER; COMMAND". The first one is compared with each of the others."""
    seconds: float = 60.0
    """Seconds to time in each turn, after its first steps."""
    skip: int = 10
    """First steps of a turn that are not timed (compilation, warm-up)."""
    rounds: int = 2
    """Turns of each trainer. 2 gives A-B-A-B."""
    patience: float = 420.0
    """Time limit of a turn in seconds."""
    tokens: int = 524_288
    """Tokens of a step, the same for all trainers."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.skip < 1 or self.seconds <= 0:
            raise ValueError(
                f"rounds={self.rounds} and skip={self.skip} must be 1 or more, and "
                f"seconds={self.seconds} above 0"
            )
        for side in self.sides:
            if not side.folder.is_dir():
                raise ValueError(f"--side {side.name}: there is no folder {side.folder}")

    @property
    def sides(self) -> list[Side]:
        """The trainers. Raises: ValueError for one that does not have three parts."""
        found = []
        for text in self.side:
            parts = [part.strip() for part in text.split(";", 2)]
            if len(parts) != 3 or not all(parts):
                raise ValueError(f'--side "{text}" is not "NAME; FOLDER; COMMAND"')
            found.append(Side(parts[0], Path(parts[1]), parts[2]))
        return found


def step_seconds(arrivals: Iterable[tuple[float, str]], skip: int) -> list[float]:
    """Seconds between the log lines of two steps, without the first `skip` steps."""
    moments = [at for at, line in arrivals if _STEP_LINE.match(line)]
    return [later - at for at, later in zip(moments[skip:], moments[skip + 1 :], strict=False)]


def turn(side: Side, arguments: Arguments) -> tuple[list[float], list[str]]:
    """Run a trainer once; returns the seconds of its timed steps, and its last lines."""
    # `timeout` ends a command that hangs. Without the others, a pipe's buffer delays the lines.
    words = ["timeout", "-k", str(_GRACE_SECONDS), str(arguments.patience)]
    words += ["env", "PYTHONUNBUFFERED=1", "stdbuf", "-oL"]
    arrivals: list[tuple[float, str]] = []
    process = subprocess.Popen(
        [*words, "bash", "-c", side.command],
        cwd=side.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            arrivals.append((time.monotonic(), line))
            if sum(step_seconds(arrivals, arguments.skip)) >= arguments.seconds:
                break
    finally:
        _end(process)
        process.stdout.close()
    return step_seconds(arrivals, arguments.skip), [line for _, line in arrivals[-5:]]


def _end(process: subprocess.Popen[str]) -> None:
    """End the trainer and all of its processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def rates(found: dict[str, list[list[float]]], tokens: int) -> dict[str, dict[str, Any]]:
    """For each trainer: tokens per second (all turns, each turn), MFU, and our speed over its."""
    result: dict[str, dict[str, Any]] = {}
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = peak_flops(name, torch.bfloat16)
    for name, turns in found.items():
        every = [took for one in turns for took in one]
        if not every:
            continue
        rate = tokens / statistics.median(every)
        by_turn = [tokens / statistics.median(one) for one in turns if one]
        result[name] = {"tokens_per_second": rate, "by_turn": by_turn, "steps": len(every)}
        if peak is not None:  # the FLOPs of GPT-2 124M for all, so that MFUs compare like the rates
            result[name]["mfu"] = rate * training_flops_per_token(GPTConfig()) / peak
    first = next(iter(found))
    for name in result.keys() - {first}:
        if first in result:
            ours = result[first]["tokens_per_second"]
            result[name]["ratio"] = ours / result[name]["tokens_per_second"]
    return result


def _table_of(summary: dict[str, dict[str, Any]]) -> str:
    """Every trainer as a row of Markdown."""
    lines = ["| | tokens/s (turns) | MFU | ours / it |", "| --- | --: | --: | --: |"]
    for name, found in summary.items():
        turns = ", ".join(f"{rate:,.0f}" for rate in found["by_turn"])
        mfu = f"{found['mfu']:.1%}" if "mfu" in found else ""
        ratio = f"{found['ratio']:.2f}" if "ratio" in found else ""
        lines.append(f"| {name} | {found['tokens_per_second']:,.0f} ({turns}) | {mfu} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Run the trainers in turns, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        # With the default action, this process would end and leave its trainer running.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        sides = arguments.sides
        found: dict[str, list[list[float]]] = {side.name: [] for side in sides}
        settings = asdict(arguments) | {"out": arguments.out.name}
        settings["side"] = {side.name: side.command for side in sides}
        report = provenance(("torch",)) | {"settings": settings, "seconds_per_step": found}
        for _ in range(arguments.rounds):
            for side in sides:
                steps, last = turn(side, arguments)
                found[side.name].append(steps)
                if not steps:
                    log.warning("%s: no timed steps; last lines:\n%s", side.name, "".join(last))
                report["summary"] = rates(found, arguments.tokens)
                write_json(arguments.out, report)
        log.info("%s", _table_of(report["summary"]))


if __name__ == "__main__":
    main()
