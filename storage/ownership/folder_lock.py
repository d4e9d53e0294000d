"""The lock of a run folder: one process writes there, while the folder stays where it is.

A lock is on a file, and all work goes by path. So a process that holds the lock also checks that
its file is still the one at that path: a folder may be renamed, removed or replaced at any time.
"""

import errno
import os
import socket
import time
from pathlib import Path
from typing import IO

from storage.locks import take_lock_within
from storage.system_modules import FCNTL as fcntl

LOCK_PATIENCE_SECONDS = 2.0  # `is_locked` of a watching process holds a free lock for an instant
_CHECK_SECONDS = 2.0
_DELETED = " (deleted)"  # what Linux appends to the path of an open file that was removed


class FolderLost(ValueError):
    """The run folder was moved, removed or taken: nothing more may be written at its path."""


class FolderLock:
    """The file `lock` of one run folder, as this process knows it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = ""
        """Why nothing more may be written in the folder; empty while this process may."""
        self._file: IO[str] | None = None
        self._inode: tuple[int, int] | None = None
        self._next_check = 0.0

    def take(self, job: str) -> None:
        """Lock the folder until `release` or the end of this process.

        Raises: ValueError naming the holder (host, pid and batch job) if another one writes here.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # "a+" does not truncate: until the lock is taken, the content names its holder.
        file = self.path.open("a+", encoding="utf-8")
        try:
            take_lock_within(file, fcntl.LOCK_EX, LOCK_PATIENCE_SECONDS)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            file.close()
            raise ValueError(
                f"{self.path.parent} is being written by {holder}; stop that run or choose "
                "another --out"
            ) from error
        file.seek(0)
        file.truncate()
        of_job = f", job {job}" if job else ""
        file.write(f"{_this_process()}{of_job}\n")
        file.flush()
        self._remember(file)

    def follow(self) -> None:
        """Remember the folder that another rank has locked, to notice when it is lost."""
        try:
            self._remember(self.path.open(encoding="utf-8"))
        except OSError:  # then only the rank that holds the lock notices it
            return

    def _remember(self, file: IO[str]) -> None:
        self.release()
        self.lost = ""
        own = _inode(os.fstat(file.fileno()))
        # Where the numbers differ at once they say nothing: some network file systems make them up.
        self._inode = own if _inode(self.path.stat()) == own else None
        self._file = file  # open for as long as it counts, so that no other file gets its number

    @property
    def inode(self) -> list[int]:
        """Device and inode of the lock at its path; empty if there is none."""
        try:
            return list(_inode(self.path.stat()))
        except OSError:
            return []

    def release(self) -> None:
        """Release the lock, so that another process may write to the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def check(self) -> None:
        """Raises: FolderLost if this process took the folder and it is no longer at its path."""
        if not self.lost and self._file is not None:
            self.lost = self._problem(self._file)
        if self.lost:
            raise FolderLost(self.lost)

    def check_now_and_then(self) -> None:
        """The same, at most once in two seconds: on a network disk each look may take a moment."""
        if time.monotonic() >= self._next_check:
            self.check()
            self._next_check = time.monotonic() + _CHECK_SECONDS

    def is_held_here(self) -> bool:
        """Whether this process holds the lock, also through another FolderLock."""
        try:
            holder = self.path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        return holder.startswith(_this_process()) and self.is_locked()

    def is_locked(self) -> bool:
        """Whether a process writes to the folder; also True on a file system without locks.

        Do not poll this often: it takes a free lock for an instant, which delays a writer's `take`.
        """
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def _problem(self, file: IO[str]) -> str:
        """What became of the folder, and what can be done; empty if nothing did."""
        folder = self.path.parent
        try:
            found = self.path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return ""  # a disk that does not answer now; what is written next will show it
            return _gone(folder, _path_of(file))
        if self._inode is None or _inode(found) == self._inode:
            return ""
        return _replaced(folder, self.path, _path_of(file))


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path_of(file: IO[str]) -> Path | None:
    """Where an open file is now; None if it was removed, or if this system does not know."""
    try:
        path = os.readlink(f"/proc/self/fd/{file.fileno()}")
    except OSError:
        return None
    removed = path.endswith(_DELETED) or Path(path).name.startswith(".nfs")
    return None if removed or not Path(path).exists() else Path(path)


def _gone(folder: Path, now: Path | None) -> str:
    """What to say if there is no lock at its path any more."""
    head = f"{folder} is no longer this run's folder"
    if now is not None:
        return (
            f"{head}: it was moved to {now.parent} while the run was writing there; the run stops "
            f"and writes nothing more; to continue it, give --out {now.parent} or move it back"
        )
    if folder.is_dir():
        return (
            f"{head}: the file lock in it was removed, so another process may write there; the run "
            "stops and writes nothing more; start the same command again to continue from the "
            "newest checkpoint"
        )
    return (
        f"{head}: it was removed or moved to another disk; the run stops and writes nothing more; "
        "to continue it, put the folder back first"
    )


def _replaced(folder: Path, lock: Path, now: Path | None) -> str:
    """What to say if another file is the lock at its path."""
    try:
        holder = lock.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        holder = "another process"
    cure = "choose another --out"
    if now is not None and now != lock.absolute():
        cure = f"to continue this run, give --out {now.parent}, where its folder is now"
    return (
        f"{folder} is no longer this run's folder: {holder} has taken it; the run stops and writes "
        f"nothing more there; {cure}"
    )


def _this_process() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"
