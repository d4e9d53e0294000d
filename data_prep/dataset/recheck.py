"""Reads a data set again while a run trains, and compares it with the manifest.

A thread of the lowest priority reads one file after another, the one that was right longest ago
first, at a pace that takes all of them within the given time. Reading and hashing hold no lock of
Python. What is in the page cache is compared with the disk, which is what gets hashed. What was in
the cache before is there afterwards, and nothing else.
"""

import logging
import os
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, get_native_id

from data_prep.dataset.disk_reading import SMALLEST_CHARGE, hash_from_disk, opened_for_hashing
from data_prep.dataset.shards import DataSet, TokenShards
from storage.atomic import read_json, write_json
from storage.digest import DigestCache

log = logging.getLogger(__name__)

_SLOWEST_PACE = 5e5  # bytes/s: 0.09 % of a core (bench/LOG.md), and a small set is read often
_MARGIN = 0.75  # of the given time, for a machine that is too busy to keep the pace
_REST = 0.001  # of the given time, between two readings of one file
_FIRST_WAIT_SECONDS = 2.0
_SECONDS_BETWEEN_REPORTS = 3600.0
_SECONDS_BETWEEN_RECORDS = 60.0
_RECORD = ".rechecked.json"


@dataclass(frozen=True)
class _File:
    """A file of the data set."""

    path: Path
    sha256: str
    bytes: int
    descriptor: int | None = None
    """Training reads this open file. None: it is opened by its path."""
    in_use: bool = False
    """Whether training or validation reads it from now on; all other files only a later start."""


@dataclass(frozen=True)
class Damage:
    """A file in use that differs from the manifest."""

    path: Path
    sentence: str
    right_at: float
    """Unix time at which the file was last found right; 0 if it never was."""


class Recheck:
    """The reading thread. `damage` is set once, when a file in use differs from the manifest."""

    def __init__(
        self, data: DataSet, train: TokenShards, hours: float, right_at: float = 0.0
    ) -> None:
        """`train` are the open shards that training reads, `hours` the time for all files.

        `right_at` is the Unix time at which all files were hashed, if they were for this start.
        """
        self.damage: Damage | None = None
        self.folder = data.folder
        self._seconds = 3600 * hours
        self._train = train  # keeps its files open
        self._files = _files_of(data, train)
        total = sum(max(file.bytes, SMALLEST_CHARGE) for file in self._files)
        self._pace = max(_SLOWEST_PACE, total / (_MARGIN * self._seconds))
        self._right_at = {file.path.name: right_at for file in self._files}
        self._tried_at: dict[str, float] = {}
        self._troubled: set[str] = set()
        self._ended = Event()
        self._recorded_at = self._reported_at = time.monotonic()
        self._thread = Thread(target=self._run, name="recheck", daemon=True)
        self.files_read = 0
        """Files read so far, each as often as it was read."""
        self.cpu_seconds = 0.0
        """CPU time of the thread so far."""

    def start(self) -> None:
        """Begin to read; a second call changes nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread, and record in the data set when each file was found right."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)  # a file system that hangs must not hold up the end

    # --- the thread ---

    def _run(self) -> None:
        _lower_priority()
        self._load_record()
        if self._ended.wait(min(_FIRST_WAIT_SECONDS, self._seconds * _REST)):
            return
        try:
            self._read_for_ever()
        except Exception as error:  # whatever it is: training continues without this check
            log.error("the data are no longer read again beside training: %s", error)
        self._save_record()

    def _read_for_ever(self) -> None:
        order = self._files.copy()
        random.shuffle(order)  # a run that restarts often reads all, too, where nothing is recorded
        began = time.monotonic()
        while not self._ended.is_set():
            order.sort(key=lambda file: self._last(file.path.name))
            rest = self._last(order[0].path.name) + self._seconds * _REST - time.time()
            if rest > 0:
                self._ended.wait(min(rest, _SECONDS_BETWEEN_RECORDS))  # the clock may be set back
                continue
            if not self._check(order[0]):
                return
            self.files_read += 1
            silent = time.monotonic() - self._reported_at > _SECONDS_BETWEEN_REPORTS
            if silent or self.files_read == len(order):
                self._report((self.files_read - 1) % len(order) + 1, time.monotonic() - began)
            if self.files_read % len(order) == 0:
                began = time.monotonic()

    def _last(self, name: str) -> float:
        """When a file was last read, by the clock of `time.time`; a time to come does not count."""
        now = time.time()
        times = (self._right_at[name], self._tried_at.get(name, 0.0))
        return max((at for at in times if at <= now), default=0.0)

    def _check(self, file: _File) -> bool:
        """Read a file; returns whether to read on."""
        name = file.path.name
        self._tried_at[name] = time.time()
        try:
            with opened_for_hashing(file.path, file.descriptor) as descriptor:
                found, same = hash_from_disk(descriptor, self._pace, self._wait)
                again = found
                if found not in ("", file.sha256):
                    again, _ = hash_from_disk(descriptor, float("inf"), self._wait)
        except OSError as error:
            if name not in self._troubled:
                self._troubled.add(name)
                log.warning(
                    "%s cannot be read again now (%s); training continues", file.path, error
                )
            return True
        if not again:
            return False  # the run ends
        if again != file.sha256:
            return self._report_damage(file, again)
        if found != again or not same:
            self._report_wrong_reading(file)
        self._right_at[name] = self._tried_at[name]
        if time.monotonic() - self._recorded_at > _SECONDS_BETWEEN_RECORDS:
            self._save_record()
        return True

    def _wait(self, seconds: float) -> bool:
        self.cpu_seconds = time.thread_time()
        return self._ended.wait(max(seconds, 0))

    def _report(self, read: int, seconds: float) -> None:
        self._reported_at = time.monotonic()
        troubled = len(self._troubled)
        log.info(
            "%s: %d of %d files read again in %.0f s: %s",
            self.folder,
            read,
            len(self._files),
            seconds,
            f"{troubled} need attention, see above" if troubled else "as in the manifest",
        )

    def _report_wrong_reading(self, file: _File) -> None:
        log.error(
            "%s was read with another content than the manifest says, and a moment later with the "
            "right one: memory, disk or network of this machine are not sound. What was trained on "
            "meanwhile: python data_prep/verify.py %s --run RUN",
            file.path,
            self.folder,
        )

    def _report_damage(self, file: _File, found: str) -> bool:
        name = file.path.name
        right_at, self._right_at[name] = self._right_at[name], 0.0
        self._forget(file.path)
        differs = f"{file.path} has sha256 {found}, the manifest says {file.sha256}"
        sentence = f"{differs}: it is damaged or was changed"
        if file.in_use:
            self.damage = Damage(file.path, sentence, right_at)
            return False
        if name not in self._troubled:
            self._troubled.add(name)
            log.error(
                "%s; this run no longer reads it, but a later start will: copy it again", sentence
            )
        return True

    # --- what is kept in the data set ---

    def _load_record(self) -> None:
        for name, at in self._recorded().items():
            if name in self._right_at:
                self._right_at[name] = max(self._right_at[name], at)

    def _recorded(self) -> dict[str, float]:
        """When each file was last found right, by whichever run."""
        found = None
        with suppress(OSError, ValueError):
            found = read_json(self.folder / _RECORD)
        entries = found.items() if isinstance(found, dict) else ()
        return {name: at for name, at in entries if isinstance(at, int | float)}

    def _save_record(self, damaged: str = "") -> None:
        """Add what this run has found to the record; does nothing in a read-only folder."""
        self._recorded_at = time.monotonic()
        found = self._recorded()
        own = {name: at for name, at in self._right_at.items() if at > found.get(name, 0.0)}
        changed = found | own
        changed.pop(damaged, None)
        if changed != found:
            with suppress(OSError):
                write_json(self.folder / _RECORD, changed)

    def _forget(self, path: Path) -> None:
        """Have the next start hash a file again, although its size and times may be the same."""
        self._save_record(damaged=path.name)
        for kept in self.folder.glob(".digests-*.json"):
            cache = DigestCache(kept)
            cache.forget(path)
            cache.save()


def _files_of(data: DataSet, train: TokenShards) -> list[_File]:
    """All files of a data set. Of training shards, the tokens are those that `train` has open."""
    found = []
    for split in (data.manifest.train, data.manifest.val):
        for shard in split.shards:
            tokens = data.manifest.token_bytes * shard.tokens
            sizes = (tokens, *(n * shard.documents for n in (4, 8)))
            for (name, digest), size in zip(shard.files().items(), sizes, strict=True):
                path = data.folder / name
                in_use = name == f"{shard.name}.npy"
                found.append(_File(path, digest, size, train.descriptors.get(path), in_use))
    return found


def _lower_priority() -> None:
    """Let this thread run only where others leave a core or a disk free."""
    if sys.platform == "linux":  # elsewhere the number of a thread may be that of another process
        with suppress(OSError):
            # The priority of reads follows: https://man7.org/linux/man-pages/man2/ioprio_set.2.html
            os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)
