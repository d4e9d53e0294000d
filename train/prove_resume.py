"""Prove on this machine that a killed run ends with the same numbers as an undisturbed run.

    python train/prove_resume.py [PRESET] [--nproc 4] [--kills 25] [--resume-nproc 2 ...] [flags]

Trains once undisturbed and once with SIGKILLs at random moments. Then it compares losses, data and
final weights bit for bit. PRESET (default: demo) and all other flags are those of train/main.py.
Each kill prints one line on standard error. The verdict is Markdown, for example for an issue.
Ctrl-C ends the runs and gives the verdict on the kills so far. Exit code 0: everything was equal.
"""

import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import write_text
from storage.json_lines import append_line
from storage.script_options import parse_known_options
from train.command_line.parse import parse
from train.command_line.words import taken
from train.recovery.resume_proof.comparison import (
    ProofResult,
    check_kills,
    compare_exactly,
    compare_other_ranks,
    step_milliseconds,
    verdict,
)
from train.recovery.resume_proof.kills import KINDS, POLL_SECONDS, Job, Kill, run_with_kills

_PROG = "train/prove_resume.py"
_STEPS_PER_KILL = 4  # at least, so that the run makes progress between two kills


@dataclass(frozen=True)
class ProofOptions:
    """Options of the proof. All other options are those of the training run."""

    # With four ranks the order of gradient sums matters: there a resumed run without a fixed bucket
    # layout of DDP differed from the uninterrupted one. With two ranks it never did.
    nproc: int = 4
    """Number of ranks. With two, a sum in another order gives the same bits, so four prove more."""
    kills: int = 25
    """Number of kills, in turn of one rank, all processes, all in a save, and torchrun alone."""
    resume_nproc: tuple[int, ...] = ()
    """Also stop a run and continue it on this number of ranks, or on these in turn.
    With --reduction tree it must end with the same bits. Default: skip this part."""
    deterministic: bool = False
    """Train with deterministic kernels; CUDA needs it. One more run without them shows the cost."""
    kill_seed: int = 0
    """Seed of the kill schedule; `--seed` is the seed of the training run."""
    proof_out: Path = Path("runs/prove_resume")
    """Folder for the runs and the verdict; it must not exist yet."""

    def __post_init__(self) -> None:
        others = [("resume_nproc", number, 1) for number in self.resume_nproc]
        for name, value, least in (("nproc", self.nproc, 1), ("kills", self.kills, 0), *others):
            if value < least:
                raise ValueError(f"{name}={value} is out of range; use {least} or more")


class _Proof:
    """The runs of one proof and the kills so far."""

    def __init__(
        self, options: ProofOptions, words: list[str], steps: int, same_bits: bool
    ) -> None:
        self.options = options
        self.same_bits = same_bits
        self.words = words
        self.steps = steps
        self.kills: list[Kill] = []
        self.notes: list[str] = []
        self.finished = False
        self._began = time.monotonic()

    def job(self, name: str, processes: int, flags: list[str] | None = None) -> Job:
        """One of the runs, in the folder of its name; `flags` replace --deterministic."""
        out = self.options.proof_out / name
        deterministic = "--deterministic" if self.options.deterministic else "--no-deterministic"
        flags = [deterministic] if flags is None else flags
        restarts = self.options.kills + 1  # more than torchrun will need
        return Job([*self.words, *flags, "--out", str(out)], out, processes, restarts)

    def record(self, kill: Kill) -> None:
        """Keep a kill, print a line on standard error and append one to `kills.jsonl`."""
        self.kills.append(kill)
        done, wanted = len(self.kills), self.options.kills
        left = (time.monotonic() - self._began) / done * (wanted - done)
        sys.stderr.write(
            f"kill {done} of {wanted}: {kill.victim}{' in a save' * (kill.kind == 'save')} at step "
            f"{kill.step} of {self.steps}, resumed at {kill.resumed} after {kill.seconds:.1f} s; "
            f"about {left / 3600:.1f} h left\n"
        )
        append_line(self.options.proof_out / "kills.jsonl", asdict(kill))

    def measure(self) -> list[ProofResult]:
        """Train undisturbed, train with kills, and compare.

        Raises: KeyboardInterrupt after a Ctrl-C, when all runs have ended.
        """
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
        sys.stderr.write(f"the undisturbed run took {seconds:.0f} s; now {len(kinds)} kills\n")
        self._began = time.monotonic()
        generator = random.Random(options.kill_seed)
        run_with_kills(self.job("killed", options.nproc), kinds, self.steps, generator, self.record)
        self.finished = True
        found = self.findings()
        if options.resume_nproc:
            numbers = (options.nproc, *options.resume_nproc)
            jobs = [self.job("other", number) for number in numbers]
            found += _change_ranks(jobs, self.steps, self.same_bits)
        return found

    def findings(self) -> list[ProofResult]:
        """Compare the killed run, as far as it got, with the undisturbed one."""
        folders = [self.options.proof_out / name for name in ("straight", "killed")]
        wanted = self.options.kills if self.finished else len(self.kills)
        found = compare_exactly(*folders, finished=self.finished)
        return found + check_kills(self.kills, wanted, survivors=self.options.nproc > 1)

    def text(self, findings: list[ProofResult]) -> str:
        """The verdict as Markdown."""
        count = len(self.kills) if self.finished else f"{len(self.kills)} of {self.options.kills}"
        title = f"{' '.join(self.words)}, {self.options.nproc} ranks, {count} kills"
        return verdict(title, findings, self.kills, self.notes, self.finished)


def prove(
    options: ProofOptions, words: list[str], steps: int, same_bits: bool = False
) -> tuple[str, bool]:
    """Run the proof; returns the verdict, and whether everything was equal.

    After a Ctrl-C the verdict is that on the kills so far. `same_bits`: other numbers of ranks must
    give the same bits too.
    """
    proof = _Proof(options, words, steps, same_bits)
    try:
        found = proof.measure()
    except KeyboardInterrupt:
        if not proof.kills:
            raise
        found = proof.findings()
    text = proof.text(found)
    write_text(options.proof_out / "verdict.md", text + "\n")
    return text, proof.finished and all(finding.holds for finding in found)


def _change_ranks(jobs: list[Job], steps: int, same_bits: bool) -> list[ProofResult]:
    """Train one run by all `jobs` in turn, each stopped by SIGTERM after its share of the steps."""
    for number, job in enumerate(jobs[:-1], 1):
        process = job.start()
        try:
            while process.poll() is None and job.steps_done() < steps * number // len(jobs):
                time.sleep(POLL_SECONDS)
        finally:
            job.end()
    last = jobs[-1]
    last.run_to_end()
    straight = last.folder.path.with_name("straight")
    return compare_other_ranks(straight, last.folder.path, last.starts()[1:], same_bits)


def _options_and_run(words: list[str]) -> tuple[ProofOptions, list[str]]:
    """The options of the proof, and the words that describe the run.

    Raises: ValueError if they name a run that exists.
    """
    run, _ = taken(words, "--continue")
    if run is not None:
        raise ValueError(
            f"--continue {run} has no meaning here, since a proof trains runs of its own; give "
            f"--config {run}/config.json to prove it with that run's settings"
        )
    file, _ = taken(words, "--config")
    named = words[:1] if words and not words[0].startswith("-") else []
    options, flags = parse_known_options(
        ProofOptions, words[len(named) :], prog=_PROG, description=__doc__
    )
    if named or file is None:
        return options, [*(named or ["demo"]), *flags]
    return options, ["--out", str(options.proof_out), *flags]  # each run has one of its own


def main() -> None:
    """Read the options, run the proof, print the verdict."""
    silence_other_ranks()
    with user_errors():
        options, words = _options_and_run(sys.argv[1:])
        config = parse(words, _PROG, "Options of the training run.")
        if config.steps is None:
            raise ValueError(
                "steps=None is a whole epoch for each run; give fewer, such as --steps 200"
            )
        if config.steps < _STEPS_PER_KILL * options.kills:
            least = _STEPS_PER_KILL * options.kills
            raise ValueError(
                f"steps={config.steps} is too few for kills={options.kills}; give --steps {least}"
            )
        if options.proof_out.exists():
            raise ValueError(f"{options.proof_out} exists already; remove it or give --proof-out")
    text, holds = prove(options, words, config.steps, config.reduction == "tree")
    sys.stdout.write(text + "\n")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
