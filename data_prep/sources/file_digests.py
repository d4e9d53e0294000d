"""sha256 of the files of a source; kept in the work folder, so each file is hashed once.

A kept digest counts as long as the file's size, change times and inode are the same.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from storage.atomic import read_json, write_json
from storage.digest import file_sha256
from storage.locks import take_lock, take_lock_within
from storage.system_modules import FCNTL as fcntl

log = logging.getLogger(__name__)

_THREADS = 4
_LOCK_PATIENCE_SECONDS = 0.5
_SHOWN_BYTES = 1 << 30  # hashing more has a progress bar
_SECONDS_BETWEEN_LINES = 30.0  # of the bar when standard error is a file


@dataclass(frozen=True)
class DigestFolder:
    """Where digests are kept: the work folder of a preparation."""

    folder: Path
    shared: bool = False
    """Whether other parts use it now: then the folder is made, and one part hashes for all."""

    @property
    def path(self) -> Path:
        """The file with the digests."""
        return self.folder / "source_digests.json"


def digests_of(paths: Sequence[Path], kept: DigestFolder | None = None) -> list[str]:
    """The sha256 of each file. Raises: OSError for one that cannot be read."""
    if kept is None:
        return _hashed(paths)
    if not kept.shared:
        return _with_kept(paths, kept)
    kept.folder.mkdir(parents=True, exist_ok=True)
    with _one_part_at_a_time(kept.folder):
        return _with_kept(paths, kept)


@contextmanager
def _one_part_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "source_digests.lock").open("a+") as file:
        try:
            take_lock_within(file, fcntl.LOCK_EX, _LOCK_PATIENCE_SECONDS)
        except BlockingIOError:
            log.info("another part is hashing the files of the source; waiting for it")
            take_lock(file)
        yield


def _with_kept(paths: Sequence[Path], kept: DigestFolder) -> list[str]:
    known = _read(kept.path)
    stamps = [_stamp(path) for path in paths]
    missing = [p for p, stamp in zip(paths, stamps, strict=True) if _kept(known, p, stamp) is None]
    found = dict(zip(missing, _hashed(missing), strict=True))
    digests = [
        found.get(path) or _kept(known, path, stamp) or ""
        for path, stamp in zip(paths, stamps, strict=True)
    ]
    if missing and kept.folder.is_dir():
        entries = zip(paths, stamps, digests, strict=True)
        write_json(kept.path, {str(path): [*stamp, digest] for path, stamp, digest in entries})
    return digests


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):  # missing or damaged: everything is hashed
        return {}
    return found if isinstance(found, dict) else {}


def _kept(known: dict[str, Any], path: Path, stamp: list[int]) -> str | None:
    entry = known.get(str(path))
    if not isinstance(entry, list) or entry[:-1] != stamp or not isinstance(entry[-1], str):
        return None
    return entry[-1]


def _stamp(path: Path) -> list[int]:
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _hashed(paths: Sequence[Path]) -> list[str]:
    sizes = [path.stat().st_size for path in paths]
    interval = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    shape = {"unit": "B", "unit_scale": True, "mininterval": interval, "desc": "hashing"}
    digests = []
    # Threads are enough: hashlib releases the interpreter's lock.
    with (
        tqdm(total=sum(sizes), disable=sum(sizes) < _SHOWN_BYTES, **shape) as bar,
        ThreadPoolExecutor(_THREADS) as threads,
    ):
        for size, digest in zip(sizes, threads.map(file_sha256, paths), strict=True):
            digests.append(digest)
            bar.update(size)
    return digests
