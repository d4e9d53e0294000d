"""A run's folder: where things lie in it, its status, its lock, and its newest sound checkpoint.

config.json  status.json  lock  metrics.jsonl  loss.png  tensorboard/  samples/
checkpoints/step_000500/{model.json, model.safetensors, ..., MANIFEST.json}  checkpoints/latest
"""

import fcntl
import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import IO, Any, Literal

from storage.atomic import read_json, sync_folder, write_json
from storage.digest import file_sha256

State = Literal["running", "preempted", "finished", "failed"]
MANIFEST = "MANIFEST.json"
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
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Become the folder's only writer until this process ends, however it ends.

        Raises: ValueError naming the holder if another process writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise ValueError(
                f"{self.path} is being written by {holder}; stop that run or choose another --out"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let another process write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_status(self, state: State, step: int, reason: str = "") -> None:
        """Record how the run stands: the truth for scripts, since torchrun's exit code is not."""
        write_json(self.status, {"state": state, "step": step, "reason": reason})

    def read_status(self) -> dict[str, Any] | None:
        """The recorded state, step and reason; None before the first start."""
        return read_json(self.status) if self.status.is_file() else None

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
        aside.replace(link)
        sync_folder(self.checkpoints)

    def keep_newest(self, count: int) -> None:
        """Delete all but the newest `count` checkpoints; the manifest goes first."""
        for folder in self.all_checkpoints()[max(count, 1) :]:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}{number}")
    return free


def write_manifest(folder: Path) -> None:
    """Write the digest of every file below `folder` into its MANIFEST.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
        for p in files
    }
    write_json(folder / MANIFEST, {"format": 1, "files": entries})


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises: ValueError naming the first file that is missing or differs.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(
            f"{folder} is not a whole checkpoint (no {MANIFEST}); "
            "give a folder such as runs/gpt2/checkpoints/latest"
        )
    for name, entry in read_json(manifest)["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing, so this checkpoint is damaged; use another one")
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            raise ValueError(
                f"{path} differs from its digest in {MANIFEST}, so this checkpoint is damaged; "
                "use another one"
            )


def cut_lines(metrics: Path, discarded: Path, first_step: int) -> None:
    """Move metric lines of `first_step` and later (and a torn last line) to `discarded`."""
    if not metrics.is_file():
        return
    kept, moved = [], []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        (kept if _step_of(line) < first_step else moved).append(line + "\n")
    if moved:
        with discarded.open("a", encoding="utf-8") as file:
            file.writelines(moved)
        aside = metrics.with_name(".metrics.jsonl.partial")
        aside.write_text("".join(kept), encoding="utf-8")
        aside.replace(metrics)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
