"""sha256 of files, with a cache for unchanged files, and the fingerprint of a JSON value."""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json

_CHUNK_BYTES = 1 << 22
_COARSEST_CLOCK_NS = 2_000_000_000  # the times of FAT have two seconds, those of old NFS one


def file_sha256(path: Path) -> str:
    """sha256 of the file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value in its canonical form (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class DigestCache:
    """sha256 of files, computed again only if size, times or inode changed.

    `path` is the JSON file of the cache. If it is missing or damaged, every file is hashed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = read_json(path)
        except (OSError, ValueError):
            found = {}
        entries = found.items() if isinstance(found, dict) else ()
        self.known: dict[str, list[Any]] = {name: e for name, e in entries if _is_entry(e)}
        self._too_new: set[str] = set()
        """Files changed just before they were hashed: a change just after it may look the same."""

    def sha256(self, file: Path) -> str:
        """The file's sha256, from the cache if the file is unchanged."""
        stat = file.stat()
        # The inode too: a file that replaced another one may have its size and modification time.
        # The change time too: who writes into a file may set its modification time back (`rsync
        # --inplace -t` does), but not its change time.
        unchanged_if = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        entry = self.known.get(file.name)
        if entry is not None and entry[:-1] == unchanged_if:
            return entry[-1]
        began = time.time_ns()
        value = file_sha256(file)
        self.known[file.name] = [*unchanged_if, value]
        if began - max(stat.st_mtime_ns, stat.st_ctime_ns) < _COARSEST_CLOCK_NS:
            self._too_new.add(file.name)
        return value

    def forget(self, file: Path) -> None:
        """Remove the file from the cache, so that it is hashed again."""
        self.known.pop(file.name, None)

    def save(self) -> None:
        """Write the cache for the next start; does nothing in a folder that cannot be written."""
        lasting = {name: e for name, e in self.known.items() if name not in self._too_new}
        with suppress(OSError):
            write_json(self.path, lasting)


def _is_entry(entry: Any) -> bool:
    """Whether it is a list of size, modification time, change time, inode and digest."""
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, int, int, str]
