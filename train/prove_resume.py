"""Prove on this machine and configuration that a killed run ends as if nothing had happened.

    python train/prove_resume.py [PRESET] [--nproc 4] [--kills 25] [--resume-nproc 2] [flags]

A straight run, then one with SIGKILLs at random moments; their losses, data and final weights are
compared bit for bit. Flags of train/main.py follow; PRESET is demo if none is given. The verdict is
Markdown for an issue; exit code 0 means that everything held. A line a kill goes to standard error;
Ctrl-C ends the runs and judges the kills so far.
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import write_text
from train.command_line import parse
from train.resume_proof.comparison import (
    ProofResult,
    check_kills,
    compare_exactly,
    compare_order,
    step_milliseconds,
    verdict,
)
from train.resume_proof.kills import KINDS, POLL_SECONDS, Job, Kill, run_with_kills

PROG = "train/prove_resume.py"
STEPS_PER_KILL = 4


@dataclass(frozen=True)
class ProofOptions:
    """How it is proven, besides what is trained."""

    nproc: int = 4
    """Ranks; four, because two add up alike in any order."""
    kills: int = 25
    """SIGKILLs, in turn to one rank, all processes, all inside a save, and torchrun alone."""
    resume_nproc: int | None = None
    """Also stop a run half-way and continue it with so many ranks."""
    deterministic: bool = False
    """Compute the same bits each time (needed on CUDA); a run without shows what that costs."""
    kill_seed: int = 0
    """Decides when and whom to kill; `--seed` is the training's."""
    proof_out: Path = Path("runs/prove_resume")
    """Folder of the runs; must not exist yet."""

    def __post_init__(self) -> None:
        for name, least in (("nproc", 1), ("kills", 0), ("resume_nproc", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} is out of range; use {least} or more")


class Proof:
    """The runs of one proof, and what the kills did so far."""

    def __init__(self, options: ProofOptions, words: list[str], steps: int) -> None:
        self.options = options
        self.words = words
        self.steps = steps
        self.kills: list[Kill] = []
        self.notes: list[str] = []
        self.finished = False
        self._began = time.monotonic()

    def job(self, name: str, processes: int, flags: list[str] | None = None) -> Job:
        """One of the runs, by its name."""
        out = self.options.proof_out / name
        flags = ["--deterministic", str(self.options.deterministic)] if flags is None else flags
        restarts = self.options.kills + 1
        return Job([*self.words, *flags, "--out", str(out)], out, processes, restarts)

    def tell(self, kill: Kill) -> None:
        """A line to standard error, and one to `kills.jsonl`, which outlives this process."""
        self.kills.append(kill)
        done, wanted = len(self.kills), self.options.kills
        left = (time.monotonic() - self._began) / done * (wanted - done)
        sys.stderr.write(
            f"kill {done} of {wanted}: {kill.victim}{' in a save' * (kill.kind == 'save')} at step "
            f"{kill.step} of {self.steps}, on from {kill.resumed} after {kill.seconds:.1f} s; "
            f"about {left / 3600:.1f} h left\n"
        )
        with (self.options.proof_out / "kills.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(kill)) + "\n")

    def measure(self) -> list[ProofResult]:
        """Run straight, run under fire, and compare. Raises: KeyboardInterrupt, all runs ended."""
        options = self.options
        self.job("straight", options.nproc).run_to_end()
        straight = options.proof_out / "straight"
        self.notes.append(f"{step_milliseconds(straight):.1f} ms a step (median)")
        if options.deterministic:
            self.job("plain", options.nproc, []).run_to_end()
            plain = step_milliseconds(options.proof_out / "plain")
            self.notes.append(f"{plain:.1f} ms without --deterministic")
        kinds = [KINDS[n % len(KINDS)] for n in range(options.kills)]
        seconds = time.monotonic() - self._began
        sys.stderr.write(f"the straight run took {seconds:.0f} s; {len(kinds)} kills begin\n")
        self._began = time.monotonic()
        dice = random.Random(options.kill_seed)
        run_with_kills(self.job("killed", options.nproc), kinds, self.steps, dice, self.tell)
        self.finished = True
        found = self.findings()
        if options.resume_nproc is not None:
            other = self.job("other", options.nproc), self.job("other", options.resume_nproc)
            found += change_ranks(*other, self.steps)
        return found

    def findings(self) -> list[ProofResult]:
        """What can be said by now of the killed run against the straight one."""
        folders = [self.options.proof_out / name for name in ("straight", "killed")]
        wanted = self.options.kills if self.finished else len(self.kills)
        found = compare_exactly(*folders, finished=self.finished)
        return found + check_kills(self.kills, wanted, survivors=self.options.nproc > 1)

    def text(self, findings: list[ProofResult]) -> str:
        """The verdict."""
        many = len(self.kills) if self.finished else f"{len(self.kills)} of {self.options.kills}"
        title = f"{' '.join(self.words)}, {self.options.nproc} ranks, {many} kills"
        return verdict(title, findings, self.kills, self.notes, self.finished)


def prove(options: ProofOptions, words: list[str], steps: int) -> tuple[str, bool]:
    """The verdict, and whether everything held; after a Ctrl-C among the kills, that so far."""
    proof = Proof(options, words, steps)
    try:
        found = proof.measure()
    except KeyboardInterrupt:
        if not proof.kills:
            raise
        found = proof.findings()
    text = proof.text(found)
    write_text(options.proof_out / "verdict.md", text + "\n")
    return text, proof.finished and all(finding.holds for finding in found)


def change_ranks(first: Job, second: Job, steps: int) -> list[ProofResult]:
    """Stop a run at half its steps by SIGTERM, and let the other job finish it."""
    process = first.start()
    try:
        while process.poll() is None and first.steps_done() < steps // 2:
            time.sleep(POLL_SECONDS)
    finally:
        first.end()
    second.run_to_end()
    straight = first.folder.path.with_name("straight")
    return compare_order(straight, first.folder.path, second.starts()[-1])


def main() -> None:
    """Parse, prove, print."""
    silence_other_ranks()
    with user_errors():
        named = sys.argv[1:2] if sys.argv[1:] and not sys.argv[1].startswith("-") else ["demo"]
        rest = sys.argv[2:] if sys.argv[1:2] == named else sys.argv[1:]
        options, flags = tyro.cli(
            ProofOptions, args=rest, return_unknown_args=True, prog=PROG, description=__doc__
        )
        config = parse([*named, *flags], PROG, "The training that is killed.")
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
