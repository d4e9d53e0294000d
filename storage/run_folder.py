"""A run's folder: where things lie in it, its status, its lock, and its newest sound checkpoint.

config.json  status.json  lock  metrics.jsonl  loss.png  tensorboard/  samples/
checkpoints/step_000500/{model.json, model.safetensors, ..., MANIFEST.json}  checkpoints/latest
"""

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from storage.atomic import read_json, sync_folder, write_json
from storage.checkpoint_folder import _free_name, verify_checkpoint
from storage.json_lines import append_line
from storage.locks import take_lock, take_lock_within

State = Literal["running", "preempted", "finished", "failed"]
# What a start leaves that ended before it had recorded its configuration.
EXPECTED_NAMES = ("lock", "status.json", "starts.jsonl", "metrics.jsonl", "tensorboard")
LOCK_PATIENCE_SECONDS = 2.0  # a watcher holds a free lock for an instant to see that it is free
log = logging.getLogger(__name__)


class RunFolder:
    """The paths of a run, and what only one process at a time may do with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.jsonl"
        self.discarded_metrics = path / "metrics.discarded.jsonl"
        self.tensorboard = path / "tensorboard"
        self.evals = path / "evals.jsonl"
        self.eval_tensorboard = path / "tensorboard" / "eval"
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.starts = path / "starts.jsonl"
        self.attempt: dict[str, int] = {}
        """What `write_status` adds until the run has ended well; see train/recovery/restarts.py."""
        self._lock: IO[str] | None = None

    def lock(self, job: str = "") -> None:
        """Become the folder's only writer until this process ends, however it ends.

        Raises: ValueError naming the holder (host, pid and batch job) if another one writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+", encoding="utf-8")
        if not _locked(file):
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise ValueError(
                f"{self.path} is being written by {holder}; stop that run or choose another --out"
            )
        file.seek(0)
        file.truncate()
        of_job = f", job {job}" if job else ""
        file.write(f"{_this_process()}{of_job}\n")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let another process write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_ours(self) -> bool:
        """Whether this very process holds the lock, be it through another object."""
        try:
            holder = (self.path / "lock").read_text(encoding="utf-8")
        except OSError:
            return False
        return holder.startswith(_this_process()) and self.is_locked()

    def is_locked(self) -> bool:
        """Whether a process writes here; True too where the file system cannot tell.

        A free lock is held for an instant to know, so this is not for asking all the time.
        """
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def unexpected_files(self) -> list[str]:
        """What lies here though no run has recorded its configuration here."""
        if self.config.is_file() or not self.path.exists():
            return []
        names = sorted(path.name for path in self.path.iterdir())
        return [n for n in names if n not in EXPECTED_NAMES and not n.endswith(".partial")]

    def write_status(self, state: State, step: int, reason: str = "") -> None:
        """Record how the run stands: the truth for scripts, since torchrun's exit code is not."""
        attempt = self.attempt if state in ("running", "failed") else {}
        write_json(self.status, {"state": state, "step": step, "reason": reason, **attempt})

    def read_status(self) -> dict[str, Any] | None:
        """The recorded state, step and reason; None before the first start."""
        return read_json(self.status) if self.status.is_file() else None

    def is_finished(self) -> bool:
        """Whether the recorded state is that of a run that came to its end."""
        return (self.read_status() or {}).get("state") == "finished"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint taken after `step` updates lies."""
        return self.checkpoints / f"step_{step:06d}"

    def all_checkpoints(self) -> list[Path]:
        """Finished checkpoints, newest first, sound or not."""
        found = self.checkpoints.glob("step_*")
        whole = [p for p in found if p.name.removeprefix("step_").isdigit() and p.is_dir()]
        return sorted(whole, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that verifies; broken newer ones are named and set aside."""
        for folder in self.all_checkpoints():
            try:
                verify_checkpoint(folder)
            except OSError as error:
                log.warning("%s cannot be read now (%s), trying the one before", folder, error)
            except ValueError as error:
                aside = _free_name(folder.with_name(folder.name + ".broken"))
                log.warning("%s; moved to %s, trying the one before", error, aside)
                folder.rename(aside)
            else:
                return folder
        return None

    def point_latest_at(self, folder: Path) -> None:
        """Make `checkpoints/latest` a link to `folder`, in one step."""
        link = self.checkpoints / "latest"
        aside = self.checkpoints / f".latest.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(folder.name)
        if link.is_dir() and not link.is_symlink():  # of a run that was copied through its links
            link.rename(_free_name(link.with_name("latest.copied")))
        aside.replace(link)
        sync_folder(self.checkpoints)

    def remove_unfinished(self) -> None:
        """Delete what a killed save left half-written; only the holder of the lock does this."""
        for aside in self.checkpoints.glob(".step_*.partial"):
            shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def emergency_save_lock(self) -> Iterator[None]:
        """One process at a time is inside, of those that outlived a rank; rank 0 may be dead."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.checkpoints / ".survivors").open("a+") as file:
            take_lock(file)
            yield


def _this_process() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _locked(file: IO[str]) -> bool:
    """Whether this process holds the lock now."""
    try:
        take_lock_within(file, fcntl.LOCK_EX, LOCK_PATIENCE_SECONDS)
    except BlockingIOError:
        return False
    return True


def record_start(folder: RunFolder, attempt: dict[str, int], **facts: Any) -> None:
    """Add a line to `starts.jsonl`: when, from which step, and what changed."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **attempt, **facts}
    append_line(folder.starts, line)
