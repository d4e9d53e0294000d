"""A data set copied to a machine's own disk before training reads it, each file's digest checked.

A copy that lies there already is used again, one that was cut off goes on, a damaged one is made
anew.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from storage.atomic import new_file, publish_folder
from storage.digest import file_sha256
from storage.locks import take_lock

log = logging.getLogger(__name__)

COPYING_THREADS = 4


def staged_folder(data: DataSet, stage: Path) -> Path:
    """Where the copy of a data set lies below `stage`: under the data set's fingerprint."""
    return stage / data.fingerprint[:16]


def stage_data_set(data: DataSet, stage: Path) -> None:
    """Have a checked copy of `data` at `staged_folder`; one process of a machine calls this.

    Raises: ValueError if there is no room, a file arrives damaged, or the disk fails.
    """
    place = staged_folder(data, stage)
    try:
        stage.mkdir(parents=True, exist_ok=True)
        with _alone(stage / f".{place.name}.lock"):
            if not _is_sound(place):
                _copy(data, place)
    except OSError as error:
        raise ValueError(
            f"--stage {stage}: {data.folder} cannot be copied there ({error}); free some space, "
            "name another folder, or leave --stage out"
        ) from error


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one job of this machine copy while the others wait for the same copy."""
    with lock.open("a+") as file:
        take_lock(file)
        yield


def _is_sound(place: Path) -> bool:
    """Whether a whole copy lies there; a damaged one is removed."""
    if not place.exists():
        return False
    try:
        check_data_set(open_data_set(place), "cached")
    except ValueError as error:
        log.warning("%s; the staged copy is made anew", error)
        shutil.rmtree(place)
        return False
    log.info("the data set lies at %s already", place)
    return True


def _copy(data: DataSet, place: Path) -> None:
    shards = (*data.manifest.train.shards, *data.manifest.val.shards)
    files = {name: digest for shard in shards for name, digest in shard.files().items()}
    aside = place.with_name(f".{place.name}.partial")
    aside.mkdir(exist_ok=True)
    missing = [name for name in files if not (aside / name).exists()]
    needed = sum((data.folder / name).stat().st_size for name in missing)
    free = shutil.disk_usage(aside).free
    if free < needed:
        raise ValueError(
            f"--stage {place.parent} has {free / 1e9:.1f} GB free and {data.folder} takes "
            f"{needed / 1e9:.1f} GB more; free some space, name another folder, or leave it out"
        )
    log.info("copying %.2f GB from %s to %s", needed / 1e9, data.folder, place)
    start = time.perf_counter()

    def copy(name: str) -> None:
        _copy_file(data.folder / name, aside / name, files[name])

    with ThreadPoolExecutor(COPYING_THREADS) as threads:
        list(threads.map(copy, files))
    shutil.copytree(data.folder / "tokenizer", aside / "tokenizer", dirs_exist_ok=True)
    shutil.copyfile(data.folder / MANIFEST_NAME, aside / MANIFEST_NAME)
    publish_folder(aside, place)
    seconds = max(time.perf_counter() - start, 1e-9)
    log.info("copied and checked in %.1f s, %.0f MB/s", seconds, needed / 1e6 / seconds)


def _copy_file(source: Path, target: Path, digest: str) -> None:
    """Copy a file, or keep what an earlier start copied whole. Raises: ValueError if it differs."""
    if target.exists() and file_sha256(target) == digest:
        return
    with new_file(target) as aside:
        shutil.copyfile(source, aside)
        found = file_sha256(aside)
        if found != digest:
            raise ValueError(
                f"{source} arrives with sha256 {found}, the manifest says {digest}; run "
                f"`python data_prep/verify.py {source.parent}` to see whether the disk or the way "
                "damages it"
            )
