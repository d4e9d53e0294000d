"""The locks of a work folder, `OUT.partial`: one process prepares all, or each a part.

Parts are for example the tasks of a SLURM array, in a shared folder. A last process merges them.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.atomic import remove_if_empty
from storage.locks import LOCK_POLL_SECONDS, take_lock, take_lock_within
from storage.system_modules import FCNTL as fcntl

_LOCK_PATIENCE_SECONDS = 0.5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `parts`: a contiguous range of the units."""

    number: int = 1
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def units(self, count: int) -> range:
        """The numbers of its units, of `count` in all."""
        return range((self.number - 1) * count // self.parts, self.number * count // self.parts)


def parse_part(text: str) -> Part:
    """The part that `I/N` names. Raises: ValueError for anything else."""
    number, _, parts = text.partition("/")
    if number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
        return Part(int(number), int(parts))
    raise ValueError(f"part={text} must be I/N with I from 1 to N, such as 1/14")


def plans_file(partial: Path) -> Path:
    """The file with the plans of large files of the source."""
    return partial / "file_plans.json"


@contextmanager
def exclusive_lock(partial: Path) -> Iterator[None]:
    """Hold the lock of the work folder; at the end delete the folder if nothing is finished.

    Raises: ValueError if another process holds this lock, or that of a part.
    """
    try:
        with _locked(partial, partial / "lock", fcntl.LOCK_EX):
            try:
                yield
            finally:
                if not any(partial.glob("units/*/unit.json")) and not plans_file(partial).exists():
                    shutil.rmtree(partial, ignore_errors=True)
    finally:
        # After the lock file is closed: on NFS, a file that is removed while open keeps its folder.
        remove_if_empty(partial)


@contextmanager
def part_lock(partial: Path, part: Part) -> Iterator[None]:
    """Hold the lock of a part. Others may prepare other parts meanwhile, but nobody may merge.

    Raises: ValueError if another process prepares the same part, or everything.
    """
    # The folder's lock is shared among parts, and exclusive for a merge. A part's own lock file
    # has content once the part follows the plan on disk (`mark_planned`).
    own = _part_lock(partial, part)
    with _locked(partial, partial / "lock", fcntl.LOCK_SH), _locked(partial, own, fcntl.LOCK_EX):
        own.write_text("")
        _check_same_part_count(partial, part)
        yield


def mark_planned(partial: Path, part: Part) -> None:
    """Record in the lock file of a part that it follows the plan; call this in `planning_lock`."""
    with _part_lock(partial, part).open("w") as file:
        file.write("planned\n")
        file.flush()
        os.fsync(file.fileno())


def _part_lock(partial: Path, part: Part) -> Path:
    return partial / f"part_{part.number}_of_{part.parts}.lock"


def check_plan_unused(partial: Path, differing: list[str]) -> None:
    """Raises: ValueError if another process prepares a part by the plan that would be replaced.

    A part that has not planned yet, as this one, will read the new plan.
    """
    for lock in partial.glob("part_*_of_*.lock"):
        if _is_in_use(lock):
            raise ValueError(
                f"{partial} is being prepared with other options ({'; '.join(differing)} there); "
                "wait for that, stop it, or choose another --out"
            )


def _is_in_use(lock: Path) -> bool:
    """Whether a process prepares the part of this lock by the plan on disk."""
    # Wait a moment: a process that has just taken the lock first removes what an earlier one has
    # written in the file.
    deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
    while lock.read_text() and _is_held(lock):
        if time.monotonic() > deadline:
            return True
        time.sleep(LOCK_POLL_SECONDS)
    return False


def _check_same_part_count(partial: Path, part: Part) -> None:
    """Raises: ValueError if another process works with another number of parts."""
    for lock in partial.glob("part_*_of_*.lock"):
        parts = lock.stem.split("_of_")[1]
        if parts != str(part.parts) and _is_held(lock):
            raise ValueError(
                f"{partial} is being prepared in {parts} parts, which overlap with part {part}; "
                "wait for them, or stop them"
            )


def _is_held(lock: Path) -> bool:
    with lock.open("a+") as file:
        try:
            take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others may look too
        except BlockingIOError:
            return True
    return False


@contextmanager
def planning_lock(partial: Path) -> Iterator[None]:
    """Make processes that start together plan one after another."""
    with (partial / "plan.lock").open("a+") as file:
        try:
            take_lock_within(file, fcntl.LOCK_EX, _LOCK_PATIENCE_SECONDS)
        except BlockingIOError:
            log.info("another part is planning the source in %s; waiting for its plan", partial)
            take_lock(file)
        yield


@contextmanager
def _locked(partial: Path, lock: Path, how: int) -> Iterator[None]:
    partial.mkdir(parents=True, exist_ok=True)
    # For reading and writing: on NFS, a shared lock needs the first, an exclusive one the second.
    # Source: https://man7.org/linux/man-pages/man2/flock.2.html
    with lock.open("a+") as file:
        try:
            take_lock_within(file, how, _LOCK_PATIENCE_SECONDS)
        except BlockingIOError:
            raise ValueError(
                f"another process is preparing in {partial}; wait for it or choose another --out"
            ) from None
        # Between opening and locking, the process that finished may have removed the file.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise ValueError(f"another process has just finished in {partial}; run it again")
        yield
