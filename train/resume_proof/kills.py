"""A run under torchrun whose processes are killed at random moments, and what became of it."""

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

from storage.json_lines import read_last_line, read_lines
from storage.run_folder import RunFolder

REPO = Path(__file__).resolve().parents[2]
KINDS = ("rank", "all", "save", "launcher")
POLL_SECONDS = 0.002
SAVE_PATIENCE_SECONDS = 10.0
LOST_PATIENCE_SECONDS = 600.0
FAREWELL_SECONDS = 90.0  # that a run may take to save and end when it is asked to


@dataclass
class Kill:
    """One kill and how the run got over it."""

    kind: str
    step: int
    """Updates that were done for sure when it struck."""
    victim: str
    resumed: int = -1
    """The step from which the run went on."""
    seconds: float = 0.0
    """From the kill to the next step's line."""
    at: float = 0.0
    """When it struck, in Unix seconds."""

    @property
    def lost(self) -> int:
        """Updates that had to be done again."""
        return max(0, self.step - self.resumed)


class Job:
    """`train/main.py` with some arguments, as often as it takes; or `script` in its place."""

    def __init__(
        self,
        arguments: list[str],
        out: Path,
        processes: int,
        restarts: int,
        script: Path = REPO / "train/main.py",
    ) -> None:
        self.folder = RunFolder(out)
        self.log = out.with_name(f"{out.name}.log")
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [
            "env",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            f"PYTHONPATH={REPO}",
            "PYTHONSAFEPATH=1",
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={processes}", f"--max-restarts={restarts}"),
            str(script),
            *arguments,
        ]

    def start(self) -> "subprocess.Popen[bytes]":
        """Begin, or go on where the run stands."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        return self.process

    @property
    def running(self) -> "subprocess.Popen[bytes]":
        """The torchrun that was started last."""
        assert self.process is not None
        return self.process

    def end(self) -> None:
        """Have the run save and end, if it has not ended: it hears no Ctrl-C of ours."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(FAREWELL_SECONDS)
        finally:
            self.process.kill()  # its workers die with it

    def run_to_end(self) -> None:
        """Start and wait. Raises: RuntimeError with the end of the log if it does not finish."""
        try:
            self.check(self.start().wait())
        finally:
            self.end()

    def check(self, code: int) -> None:
        """Raises: RuntimeError if the run is not finished."""
        state = (self.folder.read_status() or {}).get("state")
        if state != "finished":
            end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"the run ended with code {code}, {state or 'not begun'}:\n{end}")

    def starts(self) -> list[int]:
        """The step that each start so far began at."""
        return [line["started_at_step"] for line in read_lines(self.folder.starts)]

    def steps_done(self) -> int:
        """Updates that have a line in metrics.jsonl."""
        last = read_last_line(self.folder.metrics)
        return 0 if last is None else last["step"] + 1


def workers_of(launcher: int) -> dict[int, int]:
    """Process ids of a torchrun's workers by rank."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher:
                settings = entry.joinpath("environ").read_bytes().split(b"\0")
                ranks = [s[5:] for s in settings if s.startswith(b"RANK=")]
                found |= {int(rank): int(entry.name) for rank in ranks}
        except (OSError, IndexError):
            continue  # it ended meanwhile
    return found


def kill(kind: str, job: Job, launcher: int, dice: random.Random) -> Kill | None:
    """Kill with SIGKILL what `kind` says; None if there is nothing to kill yet."""
    if kind == "save" and not _wait_for_save(job):
        return None
    workers = workers_of(launcher)
    if not workers:
        return None
    done = job.steps_done()
    if kind == "rank":
        rank = dice.choice(sorted(workers))
        os.kill(workers[rank], signal.SIGKILL)
        return Kill(kind, done, f"rank {rank}")
    os.kill(launcher, signal.SIGKILL)  # its workers die with it; all at once if they are named too
    for pid in workers.values() if kind != "launcher" else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Kill(kind, done, "torchrun alone" if kind == "launcher" else "every process")


def _wait_for_save(job: Job) -> bool:
    deadline = time.monotonic() + SAVE_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if any(job.folder.checkpoints.glob(".step_*.partial")):
            return True
        time.sleep(POLL_SECONDS)
    return False


def run_with_kills(
    job: Job, kinds: list[str], steps: int, dice: random.Random, tell: Callable[[Kill], None]
) -> None:
    """Run to the end with a kill of each kind at random steps; `tell` hears what each did.

    Raises: RuntimeError if the run ends otherwise than finished, or makes no progress for long.
    """
    last = max(steps * 4 // 5, 3 + len(kinds))  # one more save must follow each
    points = sorted(dice.sample(range(2, last), len(kinds)))
    pending = list(zip(points, kinds, strict=True))
    try:
        job.start()
        while (code := job.running.poll()) is None:
            if pending and job.steps_done() >= pending[0][0]:
                time.sleep(dice.random() * 0.2)
                done = kill_once(pending[0][1], job, dice)
                if done is not None:
                    del pending[0]
                    tell(done)
            time.sleep(POLL_SECONDS)
    finally:
        job.end()
    job.check(code)


def kill_once(kind: str, job: Job, dice: random.Random) -> Kill | None:
    """Kill, start again what torchrun does not, wait for the next step; None if nothing was hit."""
    process, before = job.running, len(job.starts())
    done = kill(kind, job, process.pid, dice)
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
    """Wait until the run has started again and done a step."""
    deadline = time.monotonic() + LOST_PATIENCE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        now = job.starts()
        if len(now) > starts:
            kill.resumed = now[-1]
            if job.steps_done() > kill.resumed:
                return
        time.sleep(POLL_SECONDS)
