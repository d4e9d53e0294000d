"""The folder of a run: its paths, lock, status, checkpoints and record of starts.

config.json       settings of the last start, and the run's identity
status.json       state of the run, for scripts and watchers
lock              held by the process that writes to the folder
metrics.jsonl     one line for each step
starts.jsonl      one line for each start
digests.jsonl     one line for each checkpoint that was written
evals.jsonl       one line for each evaluation by a watching process
samples/, tensorboard/, blackbox/, loss.png
checkpoints/step_000500/{model.json, model.safetensors, …, MANIFEST.json}
checkpoints/latest -> step_000500, and checkpoints/best
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.atomic import write_json
from storage.checkpoint_folder import (
    RESUME_FILES,
    STATE_FILE,
    NewerFormat,
    checkpoints_in,
    set_aside,
    step_name,
    verify_checkpoint,
)
from storage.json_lines import append_line
from storage.locks import take_lock
from storage.ownership.folder_lock import FolderLock
from storage.ownership.run_identity import RunIdentity
from storage.records.run_records import (
    State,
    checked_config,
    checked_status,
    set_aside_damaged_status,
    set_aside_unusable,
)

# What a run writes, but for what a start leaves that is killed before it has written config.json:
# lock, status, starts, metrics. (Black boxes, samples and checkpoints are in folders.)
_WRITTEN_BY_A_RUN = (
    *("metrics.discarded.jsonl", "evals.jsonl", "samples", "blackbox", "loss.png"),
    *("flight_recorder", "checkpoints"),
)
# A file or folder on its way to its name: `.config.json.HOST.PID.partial`.
_UNFINISHED = re.compile(
    r"\..+\.\d+\.partial|\.metrics\.jsonl\.partial|\.(?:latest|best)\.\d+|\.rehearsal"
)
log = logging.getLogger(__name__)


def _no_further_check(checkpoint: Path) -> None:
    """Accept every checkpoint that is as its manifest says."""


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
        self.digests = path / "digests.jsonl"
        self.attempt: dict[str, int] = {}
        """Count of restarts (train/recovery/restarts.py); `write_status` adds it to status.json."""
        self.identity: RunIdentity | None = None
        """Whose checkpoints count. None: all do, as for a reader of another run."""
        self._foreign: dict[tuple[str, int], str] = {}
        """Why a checkpoint is of another run, by its name and the time of its state file."""
        self._lock = FolderLock(path / "lock")

    def lock(self, job: str = "") -> None:
        """Become the folder's only writer until `unlock` or the end of this process.

        Raises: ValueError naming the holder (host, pid and batch job) if another one writes here.
        """
        self._lock.take(job)

    def follow(self) -> None:
        """On the other ranks, once rank 0 has locked the folder: notice when it is lost."""
        self._lock.follow()

    def unlock(self) -> None:
        """Release the lock, so that another process may write to the folder."""
        self._lock.release()

    def check(self) -> None:
        """Must be called before each write. Raises: FolderLost if the folder is no longer ours."""
        self._lock.check()

    def check_now_and_then(self) -> None:
        """The same, but it looks only every few seconds: for a loop of short steps."""
        self._lock.check_now_and_then()

    @property
    def run_id(self) -> str:
        """The run's identity, once it is known."""
        return "" if self.identity is None else self.identity.run_id

    @property
    def lost(self) -> str:
        """Why nothing more may be written, as the last `check` found; empty while that is fine."""
        return self._lock.lost

    @property
    def place(self) -> dict[str, Any]:
        """What tells this folder from another one that takes its name later."""
        return {"folder": str(self.path.absolute()), "lock": self._lock.inode}

    def is_ours(self) -> bool:
        """Whether this process holds the lock, also through another RunFolder."""
        return self._lock.is_held_here()

    def is_locked(self) -> bool:
        """Whether a process writes to the folder; see `FolderLock.is_locked`."""
        return self._lock.is_locked()

    def unexpected_files(self) -> list[str]:
        """What is in the way in a folder that is no run folder yet: --out may be mistyped.

        Only names that a run would write count. Others, such as a log, are the user's.
        """
        if self.config.is_file() or not self.path.exists():
            return []
        return [name for name in _WRITTEN_BY_A_RUN if self._has_content(name)]

    def _has_content(self, name: str) -> bool:
        path = self.path / name
        if path == self.checkpoints:  # which may be a link to another disk
            return bool(self.all_checkpoints())
        return any(path.iterdir()) if path.is_dir() else path.exists()

    def write_config(self, record: dict[str, Any]) -> None:
        """Write config.json. Raises: FolderLost if the folder is no longer this process's."""
        self.check()
        write_json(self.config, record)

    def write_status(self, state: State, step: int, reason: str = "") -> bool:
        """Write the state of the run to status.json; returns whether the disk has taken it.

        It only reports, so a disk that does not take it is logged and ends nothing.
        Raises: FolderLost if the folder is no longer this process's.
        """
        self.check()
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
        for path in (self.status, self.metrics, self.discarded_metrics, self.starts, self.digests):
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
        """Complete checkpoints of this run, newest first, damaged ones too.

        One of another run is named in the log, once, and otherwise left alone.
        """
        return [path for path in checkpoints_in(self.checkpoints) if not self.why_foreign(path)]

    def why_foreign(self, checkpoint: Path) -> str:
        """What shows that a checkpoint here is another run's, or not what its name says."""
        if self.identity is None:
            return ""
        try:
            key = checkpoint.name, (checkpoint / STATE_FILE).stat().st_mtime_ns
        except OSError:
            return ""
        if key not in self._foreign:
            self._foreign[key] = found = self.identity.difference(checkpoint)
            if found:
                log.warning(
                    "%s is not a checkpoint of this run (%s); it is left alone and never resumed "
                    "from",
                    checkpoint,
                    found,
                )
        return self._foreign[key]

    def recover_newest_checkpoint(
        self, check: Callable[[Path], None] = _no_further_check
    ) -> Path | None:
        """Find the newest sound checkpoint, and rename the damaged ones that are newer.

        `check` may find more than a wrong digest, and then raises ValueError.
        Raises: NewerFormat if a newer version wrote it: nothing is passed over for that.
        """
        for folder in self.all_checkpoints():
            try:
                verify_checkpoint(folder, RESUME_FILES)
                check(folder)
            except NewerFormat:
                raise
            except OSError as error:  # it may be readable later, so it keeps its name
                log.warning("%s cannot be read now (%s), trying the one before", folder, error)
            except ValueError as error:
                log.warning("%s; moved to %s, trying the one before", error, set_aside(folder))
            else:
                return folder
        return None

    def remove_unfinished(self) -> None:
        """Delete what killed processes left unfinished; call this with the lock held."""
        # Nobody else writes here under such a name: a watcher has evals.jsonl and event files.
        folders = [self.path, self.checkpoints, self.samples, self.path / "blackbox"]
        folders += self.all_checkpoints()  # to which results are added
        for path in (p for folder in folders for p in folder.glob(".*")):
            if not _UNFINISHED.fullmatch(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def emergency_save_lock(self) -> Iterator[None]:
        """Let one process at a time into the block: after a rank died, all others try to save.

        Raises: FolderLost if the folder is no longer this run's.
        """
        self.check()
        # A second lock file, because rank 0 holds the first one until its process ends.
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.checkpoints / ".survivors").open("a+") as file:
            take_lock(file)
            yield


def record_start(folder: RunFolder, attempt: dict[str, int], **facts: Any) -> None:
    """Append a line to `starts.jsonl`: time, count of restarts, and the facts of this start."""
    folder.check()
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **attempt, **facts}
    try:
        append_line(folder.starts, line)
    except OSError as error:  # it only reports
        log.error("%s cannot be written (%s); it lacks a line", folder.starts, error)
