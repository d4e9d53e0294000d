"""The folder of a preparation under way, `OUT.partial`: its plan, its locks, its shares.

One process prepares everything, or several prepare a part each (tasks of a SLURM array on a shared
folder) and a last one merges.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.preparation.split import SplitRule
from data_prep.preparation.unit import UnitWork
from data_prep.tokenizer import Tokenizer
from storage.atomic import read_json, remove_if_empty, write_json
from storage.locks import POLL_SECONDS, take_lock, take_lock_within

RULE = "split_rule"
LOCK_PATIENCE_SECONDS = 0.5


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `parts`: a contiguous run of the units."""

    number: int = 1
    parts: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def units(self, count: int) -> range:
        """Numbers of its units of `count`."""
        return range((self.number - 1) * count // self.parts, self.number * count // self.parts)


def parse_part(text: str) -> Part:
    """The part that `I/N` names. Raises: ValueError."""
    number, _, parts = text.partition("/")
    if number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
        return Part(int(number), int(parts))
    raise ValueError(f"part={text} must be I/N with I from 1 to N, such as 1/14")


def plan_file(partial: Path) -> Path:
    """Where the plan of the preparation is kept."""
    return partial / "plan.json"


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What `found` says where it is not what is `wanted`."""
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    return [f"{key}={found.get(key)}" for key in keys]


def remembered_rule(partial: Path, plan: dict[str, Any]) -> SplitRule | None:
    """The split rule that an earlier start by the same plan came to."""
    found = _read_plan(partial)
    rule = found.pop(RULE, None)
    if rule is None or differences(found, plan):
        return None
    return SplitRule(**{**rule, "val_files": tuple(rule["val_files"])})


def _read_plan(partial: Path) -> dict[str, Any]:
    begun = plan_file(partial)
    return read_json(begun) if begun.is_file() else {}


def start_or_go_on(
    work: UnitWork, plan: dict[str, Any], tokenizer: Tokenizer, share: range
) -> None:
    """Make the folders of a new preparation, or check that the one begun here is the same.

    Raises: ValueError if finished units of another plan would be lost, or a part of it is at work.
    """
    partial = work.folder.parent
    found = _read_plan(partial)
    found.pop(RULE, None)
    differing = differences(found, plan) if found else []
    if differing and any(work.folder.glob("*/unit.json")):
        raise ValueError(
            f"{partial} holds unfinished work of another preparation ({'; '.join(differing)} "
            "there); delete it or start with the same options and files"
        )
    if differing:
        _check_nobody_follows(partial, differing)
        shutil.rmtree(work.data_folder, ignore_errors=True)
    for number in share:
        for debris in work.folder.glob(f".{number:06d}.*.partial"):
            shutil.rmtree(debris)
    work.folder.mkdir(exist_ok=True)
    tokenizer.save(work.tokenizer_folder)
    write_json(plan_file(partial), {**plan, RULE: work.rule.as_json()})


@contextmanager
def exclusive_lock(partial: Path) -> Iterator[None]:
    """Hold the lock of the work folder, which is there while there is work to keep.

    Raises: ValueError if another process holds it, or a part of it.
    """
    try:
        with _locked(partial, partial / "lock", fcntl.LOCK_EX):
            try:
                yield
            finally:
                if not any(partial.glob("units/*/unit.json")):
                    shutil.rmtree(partial, ignore_errors=True)
    finally:
        remove_if_empty(partial)


@contextmanager
def part_lock(partial: Path, part: Part) -> Iterator[None]:
    """Hold the lock of a part; other parts may be prepared meanwhile, but nothing be merged.

    Raises: ValueError if another process prepares the same part, or everything.
    """
    own = _part_lock(partial, part)
    with _locked(partial, partial / "lock", fcntl.LOCK_SH), _locked(partial, own, fcntl.LOCK_EX):
        own.write_text("")
        _check_no_other_sharing(partial, part)
        yield


def note_planned(partial: Path, part: Part) -> None:
    """Say in the lock of a part that it follows the plan; in `planning_lock`."""
    with _part_lock(partial, part).open("w") as file:
        file.write("planned\n")
        file.flush()
        os.fsync(file.fileno())


def _part_lock(partial: Path, part: Part) -> Path:
    return partial / f"part_{part.number}_of_{part.parts}.lock"


def _check_nobody_follows(partial: Path, differing: list[str]) -> None:
    """Raises: ValueError if a part is at work by the plan that is to be replaced.

    A part that is still to plan, as this one, will see the new plan.
    """
    for lock in partial.glob("part_*_of_*.lock"):
        if _is_followed(lock):
            raise ValueError(
                f"{partial} is being prepared with other options ({'; '.join(differing)} there); "
                "wait for that, stop it, or choose another --out"
            )


def _is_followed(lock: Path) -> bool:
    """Whether a part is at work by the plan; one that has just begun takes back what it finds."""
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while lock.read_text() and _is_held(lock):
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_SECONDS)
    return False


def _check_no_other_sharing(partial: Path, part: Part) -> None:
    """Raises: ValueError if a process prepares a part of another number of parts."""
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
            take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as others may look at the same time
        except BlockingIOError:
            return True
    return False


@contextmanager
def planning_lock(partial: Path) -> Iterator[None]:
    """Let parts that begin together plan one after another."""
    with (partial / "plan.lock").open("a+") as file:
        take_lock(file)
        yield


@contextmanager
def _locked(partial: Path, lock: Path, how: int) -> Iterator[None]:
    partial.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            take_lock_within(file, how, LOCK_PATIENCE_SECONDS)
        except BlockingIOError:
            raise ValueError(
                f"another process is preparing in {partial}; wait for it or choose another --out"
            ) from None
        # Between opening and locking, the process that finished may have removed the file.
        if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            raise ValueError(f"another process has just finished in {partial}; run it again")
        yield


def remove_finished(partial: Path) -> None:
    """Delete the folder if a crash left it behind a data set that was already complete."""
    if partial.is_dir() and not (partial / "data").exists():
        with exclusive_lock(partial):
            shutil.rmtree(partial, ignore_errors=True)


def check_all_finished(work: UnitWork, count: int) -> None:
    """Raises: ValueError naming the parts whose units are missing."""
    missing = [number for number in range(count) if work.result(number) is None]
    if not missing:
        return
    shown = ", ".join(str(part) for part in _parts_begun(work) if _touches(part, missing, count))
    named = f"part {shown}: " if shown else ""
    raise ValueError(
        f"{named}{len(missing)} of {count} units are not finished, the first is {missing[0]}; "
        "run each missing part again with --part, then --merge"
    )


def _touches(part: Part, missing: list[int], count: int) -> bool:
    return not set(part.units(count)).isdisjoint(missing)


def _parts_begun(work: UnitWork) -> list[Part]:
    """All parts of the newest way of sharing, also those that were never started."""
    locks = sorted(work.folder.parent.glob("part_*_of_*.lock"), key=lambda p: p.stat().st_mtime)
    parts = int(locks[-1].stem.split("_of_")[1]) if locks else 0
    return [Part(number, parts) for number in range(1, parts + 1)]
