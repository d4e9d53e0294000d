"""Whole trainers side by side: each runs by its own command in its own checkout, by turns.

    python bench/peers.py --side "ours; .; python train/main.py gpt2 --data data/prose ..." \
        "llm.c; ../llm.c; python train_gpt2.py --model d12 ..."

bench/README.md has the commands of every peer. What is timed is the same for all: the moments at
which their own lines of a step arrive here, the first ones (compilation) left out; tokens of a step
over the median between two lines. None of a peer's own figures is used. Prints Markdown, writes one
JSON after every turn.
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
import tyro

from bench.provenance import provenance
from model.config import GPTConfig
from model.estimates.flops import peak_flops, training_flops_per_token
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import write_json

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "bench" / "results" / "peers.json"
# One line a step: ours, build-nanogpt, both trainers of llm.c; nanoGPT; modded-nanogpt.
STEP_LINE = re.compile(r"step +\d+(/\d+)? \| (train )?loss|iter \d+: loss|step:\d+/\d+ train_time")
GRACE_SECONDS = 20  # from SIGTERM to SIGKILL

log = logging.getLogger("train")


@dataclass(frozen=True)
class Side:
    """One trainer."""

    name: str
    folder: Path
    command: str


@dataclass(frozen=True)
class Arguments:
    """Time trainers side by side."""

    side: tuple[str, ...]
    """Trainers as "NAME; FOLDER; COMMAND", the first is compared with the others."""
    seconds: float = 60.0
    """Time of each turn after its first steps."""
    skip: int = 10
    """First steps of a turn that do not count: compilation, warm-up."""
    rounds: int = 2
    """Turns of each: 2 is A-B-A-B."""
    patience: float = 420.0
    """Seconds after which a turn ends in any case."""
    tokens: int = 524_288
    """Tokens of a step, the same for all."""
    out: Path = OUT
    """Result file."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.skip < 1 or self.seconds <= 0:
            raise ValueError(
                f"rounds={self.rounds}, skip={self.skip} and seconds={self.seconds} must be 1 or "
                "more; the first lines of a turn tell nothing"
            )
        for side in self.sides:
            if not side.folder.is_dir():
                raise ValueError(f"--side {side.name}: there is no folder {side.folder}")

    @property
    def sides(self) -> list[Side]:
        """The trainers. Raises: ValueError for one that is not three parts."""
        found = []
        for text in self.side:
            parts = [part.strip() for part in text.split(";", 2)]
            if len(parts) != 3 or not all(parts):
                raise ValueError(f'--side "{text}" is not "NAME; FOLDER; COMMAND"')
            found.append(Side(parts[0], Path(parts[1]), parts[2]))
        return found


def step_seconds(arrivals: Iterable[tuple[float, str]], skip: int) -> list[float]:
    """Seconds between the lines of two steps, without the first `skip` of them."""
    moments = [at for at, line in arrivals if STEP_LINE.match(line)]
    return [later - at for at, later in zip(moments[skip:], moments[skip + 1 :], strict=False)]


def turn(side: Side, arguments: Arguments) -> tuple[list[float], list[str]]:
    """One run of `side`: seconds of its counted steps, and its last lines."""
    # Their output would stay in a buffer, and a command that hangs would never end.
    words = [
        "timeout",
        "-k",
        str(GRACE_SECONDS),
        str(arguments.patience),
        "env",
        "PYTHONUNBUFFERED=1",
        "stdbuf",
        "-oL",
    ]
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
        end(process)
        process.stdout.close()
    return step_seconds(arrivals, arguments.skip), [line for _, line in arrivals[-5:]]


def end(process: subprocess.Popen[str]) -> None:
    """End the trainer with all its processes."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def rates(found: dict[str, list[list[float]]], tokens: int) -> dict[str, dict[str, Any]]:
    """Tokens per second of each side by all its turns and by each, its MFU, and our ratio to it."""
    result: dict[str, dict[str, Any]] = {}
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    for name, turns in found.items():
        every = [took for one in turns for took in one]
        if not every:
            continue
        rate = tokens / statistics.median(every)
        by_turn = [tokens / statistics.median(one) for one in turns if one]
        result[name] = {"tokens_per_second": rate, "by_turn": by_turn, "steps": len(every)}
        if peak is not None:  # GPT-2 124M's FLOPs for all, whatever else their shape adds
            result[name]["mfu"] = rate * training_flops_per_token(GPTConfig()) / peak
    first = next(iter(found))
    for name in result.keys() - {first}:
        if first in result:
            ours = result[first]["tokens_per_second"]
            result[name]["ratio"] = ours / result[name]["tokens_per_second"]
    return result


def table_of(summary: dict[str, dict[str, Any]]) -> str:
    """The sides as Markdown."""
    lines = ["| | tokens/s (turns) | MFU | times as fast |", "| --- | --: | --: | --: |"]
    for name, found in summary.items():
        turns = ", ".join(f"{rate:,.0f}" for rate in found["by_turn"])
        mfu = f"{found['mfu']:.1%}" if "mfu" in found else ""
        ratio = f"{found['ratio']:.2f}" if "ratio" in found else ""
        lines.append(f"| {name} | {found['tokens_per_second']:,.0f} ({turns}) | {mfu} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Take turns, report."""
    silence_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, description=__doc__)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trainer ends too
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
                    log.warning("%s: no steps; its last lines:\n%s", side.name, "".join(last))
                report["summary"] = rates(found, arguments.tokens)
                write_json(arguments.out, report)
        log.info("%s", table_of(report["summary"]))


if __name__ == "__main__":
    main()
