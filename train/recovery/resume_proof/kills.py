"""Runs train/main.py under torchrun and kills its processes at random moments.

In: the command line of a run, the kinds of kills, a random generator. Out: the run folder, and one
`Kill` for each kill with the step at which the run resumed and the time that it took.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.json_lines import is_count, read_last_line, read_lines
from storage.run_folder import RunFolder

_REPO = Path(__file__).resolve().parents[3]
# What a kill ends: one rank, all processes, all processes inside a save, or torchrun alone. The
# names are written to kills.jsonl.
KINDS = ("rank", "all", "save", "launcher")
POLL_SECONDS = 0.002
_SAVE_WAIT_SECONDS = 10.0  # to wait for the next save, so that the kill happens inside it
_RECOVERY_SECONDS = 600.0  # to wait for the next step after a kill
_SHUTDOWN_SECONDS = 90.0  # for a run to save and exit after SIGTERM


@dataclass
class Kill:
    """One kill, and how the run recovered from it. A line of `kills.jsonl`."""

    kind: str
    step: int
    """Updates that had a metric line at the time of the kill."""
    victim: str
    resumed: int = -1
    """The step at which the run resumed."""
    seconds: float = 0.0
    """Seconds from the kill to the metric line of the next step."""
    at: float = 0.0
    """Time of the kill in Unix seconds."""

    @property
    def lost(self) -> int:
        """Updates that had to be repeated."""
        return max(0, self.step - self.resumed)


class Job:
    """A run of `train/main.py` (or of another `script`) that can be started several times."""

    def __init__(
        self,
        arguments: list[str],
        out: Path,
        processes: int,
        restarts: int,
        script: Path = _REPO / "train/main.py",
    ) -> None:
        self.folder = RunFolder(out)
        self.log = out.with_name(f"{out.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [
            "env",
            # Without it, restarts inside torchrun can read addresses of the previous attempt:
            # https://github.com/pytorch/pytorch/issues/135712
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            f"PYTHONPATH={_REPO}",
            "PYTHONSAFEPATH=1",
            *(sys.executable, str(_REPO / "parallel/launcher.py"), "--standalone"),
            *(f"--nproc_per_node={processes}", f"--max-restarts={restarts}"),
            str(script),
            *arguments,
        ]

    def start(self) -> "subprocess.Popen[bytes]":
        """Start torchrun. It resumes the run if the folder has a checkpoint."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.process

    @property
    def running(self) -> "subprocess.Popen[bytes]":
        """The torchrun process that was started last."""
        assert self.process is not None
        return self.process

    def end(self) -> None:
        """Ask the run to save and exit, and wait for it."""
        # torchrun has a session of its own, so it does not receive a Ctrl-C of this terminal.
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_SHUTDOWN_SECONDS)
        finally:
            self.process.kill()  # also ends its workers, see parallel.ranks.exit_with_torchrun

    def run_to_end(self) -> None:
        """Start the run and wait for its end.

        Raises: RuntimeError with the end of the log if the run does not finish.
        """
        try:
            self.check(self.start().wait())
        finally:
            self.end()

    def check(self, code: int) -> None:
        """Raises: RuntimeError if the run is not finished."""
        state = (self.folder.read_status() or {}).get("state")
        if state != "finished":
            end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"the run ended with code {code}, {state or 'not started'}:\n{end}")

    def starts(self) -> list[int]:
        """The step at which each start so far began."""
        found = [line.get("started_at_step") for line in read_lines(self.folder.starts)]
        return [step for step in found if is_count(step)]

    def steps_done(self) -> int:
        """Number of updates that have a line in metrics.jsonl."""
        last = read_last_line(self.folder.metrics)
        step = None if last is None else last.get("step")
        return step + 1 if is_count(step) else 0


def workers_of(torchrun: int) -> dict[int, int]:
    """Process ids of the workers of a torchrun process (given by its id), by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain spaces: the fields after it are safe to split.
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == torchrun:
                settings = entry.joinpath("environ").read_bytes().split(b"\0")
                ranks = [s[5:] for s in settings if s.startswith(b"RANK=")]
                found |= {int(rank): int(entry.name) for rank in ranks}
        except (OSError, IndexError):
            continue  # the process has ended since the listing
    return found


def _kill(kind: str, job: Job, torchrun: int, generator: random.Random) -> Kill | None:
    """Send SIGKILL to the processes that `kind` names (see KINDS).

    Returns None if there is nothing to kill yet. `torchrun` is the process id.
    """
    # A checkpoint is written in a folder .step_N.….partial, see storage/atomic.py.
    if kind == "save" and not _wait_for_save(job):
        return None
    workers = workers_of(torchrun)
    if not workers:
        return None
    done = job.steps_done()
    if kind == "rank":
        rank = generator.choice(sorted(workers))
        os.kill(workers[rank], signal.SIGKILL)
        return Kill(kind, done, f"rank {rank}")
    # The workers end with torchrun. Killing them here too makes all processes end at once.
    os.kill(torchrun, signal.SIGKILL)
    for pid in workers.values() if kind != "launcher" else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Kill(kind, done, "torchrun alone" if kind == "launcher" else "every process")


def _wait_for_save(job: Job) -> bool:
    deadline = time.monotonic() + _SAVE_WAIT_SECONDS
    while time.monotonic() < deadline:
        if any(job.folder.checkpoints.glob(".step_*.partial")):
            return True
        time.sleep(POLL_SECONDS)
    return False


def run_with_kills(
    job: Job,
    kinds: list[str],
    steps: int,
    generator: random.Random,
    on_kill: Callable[[Kill], None],
) -> None:
    """Run to the end with a kill of each kind at random steps; call `on_kill` after each.

    Raises: RuntimeError if the run ends without having finished.
    """
    last = max(steps * 4 // 5, 3 + len(kinds))  # leaves room for one more save after the last kill
    points = sorted(generator.sample(range(2, last), len(kinds)))
    pending = list(zip(points, kinds, strict=True))
    try:
        job.start()
        while (code := job.running.poll()) is None:
            if pending and job.steps_done() >= pending[0][0]:
                time.sleep(generator.random() * 0.2)  # so that kills hit any moment of a step
                done = kill_once(pending[0][1], job, generator)
                if done is not None:
                    del pending[0]
                    on_kill(done)
            time.sleep(POLL_SECONDS)
    finally:
        job.end()
    job.check(code)


def kill_once(kind: str, job: Job, generator: random.Random) -> Kill | None:
    """Kill once, start torchrun again if it was killed, and wait for the next step.

    Returns None if there was nothing to kill yet.
    """
    process, before = job.running, len(job.starts())
    done = _kill(kind, job, process.pid, generator)
    if done is None:
        return None
    done.at, began = time.time(), time.monotonic()
    if kind != "rank":
        process.wait()
        process = job.start()
    _recover(job, process, done, before)
    done.seconds = time.monotonic() - began
    return done


def _recover(job: Job, process: "subprocess.Popen[bytes]", kill: Kill, starts: int) -> None:
    """Wait until the run has resumed and finished a step; fill in `kill.resumed`."""
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        now = job.starts()
        if len(now) > starts:
            kill.resumed = now[-1]
            if job.steps_done() > kill.resumed:
                return
        time.sleep(POLL_SECONDS)
