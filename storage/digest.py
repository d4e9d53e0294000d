"""sha256 of files, with a cache for unchanged files, and the fingerprint of a JSON value."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json

_CHUNK_BYTES = 1 << 22


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
    """sha256 of files, computed again only if size, modification time or inode changed.

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

    def sha256(self, file: Path) -> str:
        """The file's sha256, from the cache if the file is unchanged."""
        stat = file.stat()
        # The inode too: a file that replaced another one may have its size and modification time.
        unchanged_if = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = self.known.get(file.name)
        if entry is not None and entry[:3] == unchanged_if:
            return entry[3]
        value = file_sha256(file)
        self.known[file.name] = [*unchanged_if, value]
        return value

    def forget(self, file: Path) -> None:
        """Remove the file from the cache, so that it is hashed again."""
        self.known.pop(file.name, None)

    def save(self) -> None:
        """Write the cache for the next start; does nothing in a folder that cannot be written."""
        with suppress(OSError):
            write_json(self.path, self.known)


def _is_entry(entry: Any) -> bool:
    """Whether it is a list of size, modification time, inode and digest."""
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, int, str]
