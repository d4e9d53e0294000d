"""Copies one file of a store: by parts, continued after a kill, checked, whole or not."""

import hashlib
import logging
import os
import threading
from base64 import b64decode
from pathlib import Path
from typing import Any

from data_prep.hub.retries import RetryableError
from data_prep.preparation.cloud.stores import StoredFile, differ
from data_prep.worker_processes import Interrupted
from storage.atomic import sync_file, sync_folder
from storage.digest import file_sha256, fingerprint
from storage.json_lines import append_line, read_lines

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 24
_RECORD = "copies.jsonl"


class _AgainFromStart(Exception):
    """What was copied of a file is of no use; `now` is what the store says of it now."""

    def __init__(self, reason: str, now: StoredFile) -> None:
        super().__init__(reason)
        self.now = now


class Copies:
    """The copies in one folder, and the record of those that are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stopping = threading.Event()
        self._record = folder / _RECORD
        self._lock = threading.Lock()
        self._known = {line["copy"]: line for line in read_lines(self._record) if _is_sound(line)}
        self._copied = 0

    def path(self, file: StoredFile) -> Path:
        """Where the copy of a file is, or will be."""
        return self.folder / file.copy

    def is_complete(self, file: StoredFile) -> bool:
        """Whether the copy is here, of the file as it is now, and untouched since."""
        known, path = self._known.get(file.copy), self.path(file)
        if known is None or not path.is_file():
            return False
        return known["file"] == _as_found(path) and not differ(known["stamp"], file.stamp)

    def missing_bytes(self, file: StoredFile) -> int:
        """How many bytes of a file are not here."""
        return (
            0 if self.is_complete(file) else max(0, (file.size or 0) - _size(self._partial(file)))
        )

    def take_copied(self) -> int:
        """The bytes copied since the last call."""
        with self._lock:
            copied, self._copied = self._copied, 0
        return copied

    def _add(self, count: int) -> None:
        with self._lock:
            self._copied += count

    def drop_others(self, files: list[StoredFile]) -> None:
        """Delete copies of files that are no longer in the source."""
        wanted = {file.copy for file in files}
        for name in self._known.keys() - wanted:
            (self.folder / name).unlink(missing_ok=True)

    def copy(self, file: StoredFile) -> None:
        """Copy a file, unless it is here. Raises: ValueError if it cannot be; Interrupted."""
        if self.is_complete(file):
            return
        path = self.path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_partials(file, keep=self._partial(file))
        tries, reason = file.store.retries.max_damaged, ""
        for _ in range(tries):
            partial = self._partial(file)
            try:
                self._fill(file, partial)
                self._check(file, partial)
            except _AgainFromStart as error:
                reason = str(error)
                log.warning("%s %s; it is copied again", file.shown, reason)
                partial.unlink(missing_ok=True)
                file = error.now
                continue
            sync_file(partial)
            partial.replace(path)
            sync_folder(path.parent)
            self._note(file)
            return
        raise ValueError(
            f"{file.shown} {reason}, {tries} times in a row; nothing of it was used; run it again "
            "when nobody writes to it"
        )

    def remove_all(self) -> None:
        """Delete every copy, complete or not, and the record."""
        for name in {*self._known}:
            (self.folder / name).unlink(missing_ok=True)
        for partial in self.folder.rglob(".*.copying"):
            partial.unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _partial(self, file: StoredFile) -> Path:
        # Of the file as it is now: what was begun of another content is not continued.
        path = self.path(file)
        return path.with_name(f".{path.name}.{fingerprint(file.stamp)[:12]}.copying")

    def _remove_partials(self, file: StoredFile, keep: Path) -> None:
        name = self.path(file).name
        for found in self.path(file).parent.iterdir():
            is_ours = found.name.startswith(f".{name}.") and found.name.endswith(".copying")
            if is_ours and found != keep:
                found.unlink(missing_ok=True)

    def _fill(self, file: StoredFile, partial: Path) -> None:
        """Fetch what is missing of `partial`."""
        store = file.store
        if not file.ranges or file.size is None:
            store.with_retries(file.shown, lambda: self._fetch_whole(file, partial))
            return
        with partial.open("ab") as target:
            # After a power cut the last block may be one that was never flushed.
            start = max(0, (target.tell() - 1) // _BLOCK_BYTES * _BLOCK_BYTES)
            target.truncate(start)
            while start < file.size:
                stop = min(start + _BLOCK_BYTES, file.size)
                target.write(
                    store.with_retries(
                        file.shown, lambda start=start, stop=stop: self._block(file, start, stop)
                    )
                )
                target.flush()
                os.fsync(target.fileno())
                self._add(stop - start)
                start = stop

    def _block(self, file: StoredFile, start: int, stop: int) -> bytes:
        if self.stopping.is_set():
            raise Interrupted
        content = file.store.read(file.path, start, stop)
        if len(content) != stop - start:
            self._check_unchanged(file)
            raise RetryableError(f"{len(content):,} bytes came of {stop - start:,}")
        return content

    def _fetch_whole(self, file: StoredFile, partial: Path) -> None:
        """Fetch a file from its start: its server sends no parts, or does not say its size."""
        with partial.open("wb") as target:
            for chunk in file.store.chunks(file.path):
                if self.stopping.is_set():
                    raise Interrupted
                target.write(chunk)
                self._add(len(chunk))
            came = target.tell()
        if file.size is not None and came != file.size:
            self._check_unchanged(file)
            raise RetryableError(f"{came:,} bytes came of {file.size:,}")

    def _check_unchanged(self, file: StoredFile) -> None:
        now = file.store.stored_file(file.path, file.copy, file.store.info(file.path))
        if differ(file.stamp, now.stamp):
            raise _AgainFromStart("changed while it was copied", now)

    def _check(self, file: StoredFile, partial: Path) -> None:
        """Raises: _AgainFromStart if the file changed, or its digest is not the store's."""
        self._check_unchanged(file)
        if not _has_its_digest(partial, file.stamp):
            raise _AgainFromStart("arrived damaged (its digest is not the store's)", file)

    def _note(self, file: StoredFile) -> None:
        path = self.path(file)
        line = {"copy": file.copy, "stamp": file.stamp, "file": _as_found(path)}
        with self._lock:
            self._known[file.copy] = line
            append_line(self._record, line)


def has_copies(folder: Path) -> bool:
    """Whether an earlier start has copied files to a folder."""
    return (folder / _RECORD).is_file()


def _is_sound(line: dict[str, Any]) -> bool:
    """Whether a line of the record has what is read of it; its file may be deleted, if below."""
    name, stamp = line.get("copy"), line.get("stamp")
    below = isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
    return below and isinstance(stamp, dict) and "file" in line


def _as_found(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _has_its_digest(path: Path, stamp: dict[str, Any]) -> bool:
    """Whether the content has the digest that the store gives, where it gives one."""
    if "sha256" in stamp:
        return file_sha256(path) == stamp["sha256"]
    if "md5Hash" in stamp:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").digest() == b64decode(stamp["md5Hash"])
    return True
