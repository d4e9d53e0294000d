"""Prove on this machine and configuration that a killed run ends as if nothing had happened.

    python train/prove_resume.py [PRESET] [--nproc 4] [--kills 25] [--resume-nproc 2] [flags]

A straight run, then one with SIGKILLs at random moments; their losses, data and final weights are
compared bit for bit. Flags of train/main.py follow; PRESET is demo if none is given. The verdict is
Markdown for an issue; exit code 0 means that everything held.
"""

import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from parallel.ranks import quiet_other_ranks, user_errors
from train.chaos import KINDS, POLL_SECONDS, Job, run_under_fire
from train.main import parse
from train.proof import (
    Finding,
    check_kills,
    compare_exactly,
    compare_order,
    step_milliseconds,
    verdict,
)

STEPS_PER_KILL = 4


@dataclass(frozen=True)
class ProofOptions:
    """What is proven."""

    nproc: int = 4
    """Ranks; four, because two add up alike in any order."""
    kills: int = 25
    """SIGKILLs, in turn to one rank, all processes, all inside a save, and torchrun alone."""
    resume_nproc: int | None = None
    """Also stop a run half-way and continue it with so many ranks."""
    deterministic: bool = False
    """Compute the same bits each time (needed on CUDA); a run without shows what that costs."""
    seed: int = 0
    """Decides when and whom to kill."""
    proof_out: Path = Path("runs/prove_resume")
    """Folder of the runs; must not exist yet."""

    def __post_init__(self) -> None:
        for name, least in (("nproc", 1), ("kills", 0), ("resume_nproc", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is out of range; use {least} or more")


def prove(options: ProofOptions, words: list[str], steps: int) -> tuple[str, bool]:
    """The verdict, and whether everything held."""
    folder, always = options.proof_out, ["--deterministic", str(options.deterministic)]

    def job(name: str, processes: int, flags: list[str] = always) -> Job:
        out = ["--out", str(folder / name)]
        return Job([*words, *flags, *out], folder / name, processes, options.kills + 1)

    job("straight", options.nproc).run_to_end()
    straight = folder / "straight"
    notes = [f"{step_milliseconds(straight):.1f} ms a step (median)"]
    if options.deterministic:
        job("plain", options.nproc, []).run_to_end()
        notes.append(f"{step_milliseconds(folder / 'plain'):.1f} ms without --deterministic")
    kinds = [KINDS[n % len(KINDS)] for n in range(options.kills)]
    dice = random.Random(options.seed)
    kills = run_under_fire(job("killed", options.nproc), kinds, steps, dice)
    findings = compare_exactly(straight, folder / "killed")
    findings += check_kills(kills, options.kills, survivors=options.nproc > 1)
    if options.resume_nproc is not None:
        other = job("other", options.nproc), job("other", options.resume_nproc)
        findings += change_ranks(*other, steps)
    title = f"{' '.join(words)}, {options.nproc} ranks, {len(kills)} kills"
    return verdict(title, findings, kills, notes), all(finding.holds for finding in findings)


def change_ranks(first: Job, second: Job, steps: int) -> list[Finding]:
    """Stop a run at half its steps by SIGTERM, and let the other job finish it."""
    process = first.start()
    while process.poll() is None and first.steps_done() < steps // 2:
        time.sleep(POLL_SECONDS)
    process.send_signal(signal.SIGTERM)
    process.wait()
    second.run_to_end()
    straight = first.folder.path.with_name("straight")
    return compare_order(straight, first.folder.path, second.starts()[-1])


def main() -> None:
    """Parse, prove, print."""
    quiet_other_ranks()
    with user_errors():
        named = sys.argv[1:2] if sys.argv[1:] and not sys.argv[1].startswith("-") else ["demo"]
        rest = sys.argv[2:] if sys.argv[1:2] == named else sys.argv[1:]
        options, flags = tyro.cli(ProofOptions, args=rest, return_unknown_args=True)
        config = parse([*named, *flags])
        if config.steps is None:
            raise ValueError("steps=None is a whole epoch for each run; give --steps 200 or so")
        if config.steps < STEPS_PER_KILL * options.kills:
            least = STEPS_PER_KILL * options.kills
            raise ValueError(
                f"steps={config.steps} are too few for kills={options.kills}; give --steps {least}"
            )
        if options.proof_out.exists():
            raise ValueError(f"{options.proof_out} exists already; remove it or give --proof-out")
    text, holds = prove(options, [*named, *flags], config.steps)
    sys.stdout.write(text + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
