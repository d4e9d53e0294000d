"""A run under torchrun whose processes are killed at random moments, and what became of it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from storage.run_folder import RunFolder

REPO = Path(__file__).resolve().parent.parent
KINDS = ("rank", "all", "save", "launcher")
POLL_SECONDS = 0.002
SAVE_PATIENCE_SECONDS = 10.0
LOST_PATIENCE_SECONDS = 600.0


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

    @property
    def lost(self) -> int:
        """Updates that had to be done again."""
        return max(0, self.step - self.resumed)


class Job:
    """`train/main.py` with some arguments, as often as it takes."""

    def __init__(self, arguments: list[str], out: Path, processes: int, restarts: int) -> None:
        self.folder = RunFolder(out)
        self.log = out.with_name(f"{out.name}.log")
        self.command = [
            "env",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
            f"PYTHONPATH={REPO}",
            "PYTHONSAFEPATH=1",
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc_per_node={processes}", f"--max-restarts={restarts}"),
            str(REPO / "train/main.py"),
            *arguments,
        ]

    def start(self) -> "subprocess.Popen[bytes]":
        """Begin, or go on where the run stands."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def run_to_end(self) -> None:
        """Start and wait. Raises: RuntimeError with the end of the log if it does not finish."""
        self.check(self.start().wait())

    def check(self, code: int) -> None:
        """Raises: RuntimeError if the run is not finished."""
        state = (self.folder.read_status() or {}).get("state")
        if state != "finished":
            end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"the run ended with code {code}, {state or 'not begun'}:\n{end}")

    def starts(self) -> list[int]:
        """The step that each start so far began at."""
        try:
            lines = self.folder.starts.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line)["started_at_step"] for line in lines]

    def steps_done(self) -> int:
        """Updates that have a line in metrics.jsonl."""
        try:
            with self.folder.metrics.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 8192))
                lines = file.read().split(b"\n")[1:-1]
        except FileNotFoundError:
            return 0
        return json.loads(lines[-1])["step"] + 1 if lines else 0


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


def strike(kind: str, job: Job, launcher: int, dice: random.Random) -> Kill | None:
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


def run_under_fire(job: Job, kinds: list[str], steps: int, dice: random.Random) -> list[Kill]:
    """Run to the end with a kill of each kind at random steps; says what each did.

    Raises: RuntimeError if the run ends otherwise than finished, or makes no progress for long.
    """
    last = max(steps * 4 // 5, 3 + len(kinds))  # one more save must follow each
    points = sorted(dice.sample(range(2, last), len(kinds)))
    kills: list[Kill] = []
    process = job.start()
    pending = list(zip(points, kinds, strict=True))
    while (code := process.poll()) is None:
        if pending and job.steps_done() >= pending[0][0]:
            time.sleep(dice.random() * 0.2)
            kind = pending[0][1]
            before = len(job.starts())
            kill = strike(kind, job, process.pid, dice)
            if kill is None:
                continue
            del pending[0]
            at = time.monotonic()
            if kind != "rank":
                process.wait()
                process = job.start()
            _recover(job, process, kill, before)
            kill.seconds = time.monotonic() - at
            kills.append(kill)
        time.sleep(POLL_SECONDS)
    job.check(code)
    return kills


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
