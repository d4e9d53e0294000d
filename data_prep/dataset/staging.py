"""Copies a data set to a machine's local disk before training reads it (`--stage`).

The digest of each copied file is checked. A complete copy is used again, an incomplete one is
continued, and a damaged one is replaced.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_prep.dataset.disk_reading import hash_file_from_disk
from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from storage.atomic import new_file, publish_folder, sync_file
from storage.digest import file_sha256
from storage.locks import take_lock
from storage.user_errors import reason_of

log = logging.getLogger(__name__)

COPYING_THREADS = 4


def staged_folder(data: DataSet, stage: Path) -> Path:
    """The folder below `stage` for the copy of a data set, named after its fingerprint."""
    return stage / data.fingerprint[:16]


def stage_data_set(data: DataSet, stage: Path) -> None:
    """Make `staged_folder` a checked copy of `data`; one process per machine calls this.

    Raises: ValueError if there is no room, a file arrives damaged, or the disk fails.
    """
    target = staged_folder(data, stage)
    try:
        stage.mkdir(parents=True, exist_ok=True)
        with staging_lock(stage / f".{target.name}.lock"):
            if not _is_valid_copy(target):
                _copy(data, target)
    except OSError as error:
        raise ValueError(
            f"--stage {stage}: {data.folder} cannot be copied there ({reason_of(error)}); free "
            "some space, name another folder, or leave --stage out"
        ) from error


@contextmanager
def staging_lock(lock: Path) -> Iterator[None]:
    """Let one job of this machine copy while the others wait for the result."""
    with lock.open("a+") as file:
        take_lock(file)
        yield


def _is_valid_copy(target: Path) -> bool:
    """Whether there is a complete copy at `target`; the check also caches its digests."""
    if not target.exists():
        return False
    try:
        check_data_set(open_data_set(target), "cached")
    except ValueError as error:
        log.warning("%s; the staged copy is made again", error)
        return False
    log.info("%s already holds a copy of the data set", target)
    return True


def _copy(data: DataSet, target: Path) -> None:
    shards = (*data.manifest.train.shards, *data.manifest.val.shards)
    files = {name: digest for shard in shards for name, digest in shard.files().items()}
    if target.exists():
        shutil.rmtree(target)  # a damaged copy
    # Not a random temporary name: a later start continues an incomplete copy.
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(exist_ok=True)
    missing = [name for name in files if not (partial / name).exists()]
    needed = sum((data.folder / name).stat().st_size for name in missing)
    free = shutil.disk_usage(partial).free
    if free < needed:
        raise ValueError(
            f"--stage {target.parent} has {free / 1e9:.1f} GB free and {data.folder} takes "
            f"{needed / 1e9:.1f} GB more; free some space, name another folder, or leave it out"
        )
    log.info("copying %.2f GB from %s to %s", needed / 1e9, data.folder, target)
    start = time.perf_counter()

    def copy(name: str) -> None:
        _copy_file(data.folder / name, partial / name, files[name])

    with ThreadPoolExecutor(COPYING_THREADS) as threads:
        list(threads.map(copy, files))
    # These need no check here: both are verified by their own digests whenever they are read.
    shutil.copytree(data.folder / "tokenizer", partial / "tokenizer", dirs_exist_ok=True)
    shutil.copyfile(data.folder / MANIFEST_NAME, partial / MANIFEST_NAME)
    for leftover in partial.rglob(".*.partial"):  # of a copy that was killed
        leftover.unlink()
    publish_folder(partial, target)
    seconds = max(time.perf_counter() - start, 1e-9)
    log.info("copied and checked in %.1f s, %.0f MB/s", seconds, needed / 1e6 / seconds)


def _copy_file(source: Path, target: Path, digest: str) -> None:
    """Copy a file, unless an earlier start did. Raises: ValueError if the copy differs."""
    if target.exists() and file_sha256(target) == digest:
        return
    with new_file(target) as temporary:
        shutil.copyfile(source, temporary)
        sync_file(temporary)
        found, _ = hash_file_from_disk(temporary)  # not what memory still has of it
        if found != digest:
            raise ValueError(
                f"{source} arrives with sha256 {found}, the manifest says {digest}; run "
                f"`python data_prep/verify.py {source.parent}` to see whether the disk or the "
                "copying damages it"
            )
