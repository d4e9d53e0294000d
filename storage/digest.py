"""Digests: a file's sha256 (remembered while the file is unchanged), a value's fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json

CHUNK_BYTES = 1 << 22


def file_sha256(path: Path) -> str:
    """sha256 of the file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value in its canonical form (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class DigestCache:
    """sha256 of files, recomputed only when size, mtime or inode changed.

    `path` is the JSON file that remembers; a missing or damaged one only costs time.
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
        """The file's sha256, from memory if the file has not been touched since."""
        stat = file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        entry = self.known.get(file.name)
        if entry is not None and entry[:3] == stamp:
            return entry[3]
        value = file_sha256(file)
        self.known[file.name] = [*stamp, value]
        return value

    def forget(self, file: Path) -> None:
        """Hash the file anew when it is next asked for."""
        self.known.pop(file.name, None)

    def save(self) -> None:
        """Remember for the next start; a folder that cannot be written to is no error."""
        try:
            write_json(self.path, self.known)
        except OSError:
            return


def _is_entry(entry: Any) -> bool:
    """Whether it is a size, a time, an inode and a digest."""
    return isinstance(entry, list) and [type(part) for part in entry] == [int, int, int, str]
