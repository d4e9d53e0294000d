"""The folder of a run: its paths, lock, status, checkpoints and record of starts.

config.json       settings of the last start
status.json       state of the run, for scripts and watchers
lock              held by the process that writes to the folder
metrics.jsonl     one line for each step
starts.jsonl      one line for each start
evals.jsonl       one line for each evaluation by a watching process
samples/, tensorboard/, blackbox/, loss.png
checkpoints/step_000500/{model.json, model.safetensors, …, MANIFEST.json}
checkpoints/latest -> step_000500
"""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from storage.atomic import sync_folder, write_json
from storage.checkpoint_folder import (
    checkpoints_in,
    free_path,
    set_aside,
    step_name,
    verify_checkpoint,
)
from storage.json_lines import append_line
from storage.locks import take_lock, take_lock_within
from storage.records.run_records import (
    State,
    checked_config,
    checked_status,
    set_aside_damaged_status,
    set_aside_unusable,
)
from storage.system_modules import FCNTL as fcntl

# Files that a start leaves if it ends before it has written config.json.
_EXPECTED_NAMES = ("lock", "status.json", "starts.jsonl", "metrics.jsonl", "tensorboard")
LOCK_PATIENCE_SECONDS = 2.0  # `is_locked` of a watching process holds a free lock for an instant
log = logging.getLogger(__name__)


class RunFolder:
    """The paths of a run, the lock that makes one process their only writer, and the status.

    A process that has not called `lock` may only read.
    """

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
        """Count of restarts (train/recovery/restarts.py); `write_status` adds it to status.json."""
        self._lock: IO[str] | None = None

    def lock(self, job: str = "") -> None:
        """Become the folder's only writer until `unlock` or the end of this process.

        Raises: ValueError naming the holder (host, pid and batch job) if another one writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # "a+" does not truncate: until the lock is taken, the content names its holder.
        file = (self.path / "lock").open("a+", encoding="utf-8")
        if not _take(file):
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
        """Release the lock, so that another process may write to the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_ours(self) -> bool:
        """Whether this process holds the lock, also through another RunFolder."""
        try:
            holder = (self.path / "lock").read_text(encoding="utf-8")
        except OSError:
            return False
        return holder.startswith(_this_process()) and self.is_locked()

    def is_locked(self) -> bool:
        """Whether a process writes to the folder; also True on a file system without locks.

        Do not poll this often: it takes a free lock for an instant, which delays a writer's `lock`.
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
        """Names of foreign files in a folder that is no run folder yet: --out may be mistyped."""
        if self.config.is_file() or not self.path.exists():
            return []
        names = sorted(path.name for path in self.path.iterdir())
        return [n for n in names if n not in _EXPECTED_NAMES and not n.endswith(".partial")]

    def write_status(self, state: State, step: int, reason: str = "") -> bool:
        """Write the state of the run to status.json; returns whether the disk has taken it.

        It only reports, so a disk that does not take it is logged and ends nothing.
        """
        # Scripts read this file: torchrun's exit code does not show how the run ended.
        attempt = self.attempt if state in ("running", "failed") else {}
        try:
            write_json(self.status, {"state": state, "step": step, "reason": reason, **attempt})
        except OSError as error:
            log.error("%s cannot be written (%s); it should say: %s", self.status, error, state)
            return False
        return True

    def read_status(self) -> dict[str, Any] | None:
        """The content of status.json; None before the first start, or if the file is damaged."""
        return checked_status(self.status)

    def read_config(self) -> dict[str, Any]:
        """The content of config.json: the configuration (`config`) and derived values (`run`).

        Raises: ValueError if the file is not the config.json of a run.
        """
        return checked_config(self.config)

    def set_aside_damaged(self) -> None:
        """Rename what would keep this run from writing its records; call this with the lock held.

        Nothing that only reports decides whether a run continues.
        """
        for path in (self.status, self.metrics, self.discarded_metrics, self.starts):
            set_aside_unusable(path, "file")
        for path in (self.tensorboard, self.samples):
            set_aside_unusable(path, "folder")
        set_aside_damaged_status(self.status)

    def is_finished(self) -> bool:
        """Whether the run has done all its steps, by status.json."""
        return (self.read_status() or {}).get("state") == "finished"

    def checkpoint(self, step: int) -> Path:
        """The path of the checkpoint after `step` updates."""
        return self.checkpoints / step_name(step)

    def all_checkpoints(self) -> list[Path]:
        """Complete checkpoints, newest first, damaged ones too."""
        return checkpoints_in(self.checkpoints)

    def recover_newest_checkpoint(self) -> Path | None:
        """Find the newest undamaged checkpoint, and rename the damaged ones that are newer."""
        for folder in self.all_checkpoints():
            try:
                verify_checkpoint(folder)
            except OSError as error:  # it may be readable later, so it keeps its name
                log.warning("%s cannot be read now (%s), trying the one before", folder, error)
            except ValueError as error:
                log.warning("%s; moved to %s, trying the one before", error, set_aside(folder))
            else:
                return folder
        return None

    def point_latest_at(self, folder: Path) -> None:
        """Make `checkpoints/latest` a link to `folder`, atomically."""
        link = self.checkpoints / "latest"
        temporary = self.checkpoints / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(folder.name)
        if link.is_dir() and not link.is_symlink():  # after a copy that followed links
            link.rename(free_path(link.with_name("latest.copied")))
        # Rename over the old link: between unlink and symlink a reader would find no `latest`.
        temporary.replace(link)
        sync_folder(self.checkpoints)

    def remove_unfinished(self) -> None:
        """Delete incomplete checkpoints of a killed process; call this with the lock held."""
        for temporary in self.checkpoints.glob(".step_*.partial"):
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def emergency_save_lock(self) -> Iterator[None]:
        """Let one process at a time into the block: after a rank died, all others try to save."""
        # A second lock file, because rank 0 holds the first one until its process ends.
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.checkpoints / ".survivors").open("a+") as file:
            take_lock(file)
            yield


def _this_process() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _take(file: IO[str]) -> bool:
    """Take the lock; False if another process keeps it."""
    try:
        take_lock_within(file, fcntl.LOCK_EX, LOCK_PATIENCE_SECONDS)
    except BlockingIOError:
        return False
    return True


def record_start(folder: RunFolder, attempt: dict[str, int], **facts: Any) -> None:
    """Append a line to `starts.jsonl`: time, count of restarts, and the facts of this start."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **attempt, **facts}
    try:
        append_line(folder.starts, line)
    except OSError as error:  # it only reports
        log.error("%s cannot be written (%s); it lacks a line", folder.starts, error)
