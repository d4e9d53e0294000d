"""Files and folders that are complete or absent: temporary name, flush, rename."""

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np


def save_array(path: Path, array: np.ndarray) -> None:
    """What `np.save` writes, by way of memory: straight to a file it overlooks a failing close.

    Raises: OSError with the disk's errno.
    """
    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    with path.open("wb") as file:
        file.write(content.getbuffer())


JSON_BYTES = 64 << 20  # the manifest of a hundred thousand shards; what is larger is none of ours


def temporary_path(path: Path) -> Path:
    """Where this process writes what is to become `path`; no other host or process writes there."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new names, renames) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's bytes survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` only if the block succeeds.

    A file already at `path` is replaced in one step; after an error it is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_path(path)
    try:
        yield aside
        sync_file(aside)
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) whole or not at all."""
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file.

    Raises: ValueError naming the file if it is not JSON, or larger than any that we write.
    """
    with path.open("rb") as file:
        content = file.read(JSON_BYTES + 1)
    if len(content) > JSON_BYTES:
        raise ValueError(
            f"{path} is {path.stat().st_size} bytes of JSON, but must be at most {JSON_BYTES}; it "
            "is damaged or made to fill the memory"
        )
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); it is damaged") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the name `path` only if the block succeeds.

    Raises: FileExistsError if `path` exists already (nothing is ever overwritten).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_path(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        publish_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def publish_folder(aside: Path, path: Path) -> None:
    """Flush everything below `aside` and rename it to `path`.

    Raises: FileExistsError if `path` exists already.
    """
    for found in sorted(aside.rglob("*")):
        if found.is_dir():
            sync_folder(found)
        else:
            sync_file(found)
    sync_folder(aside)
    if path.exists():
        raise FileExistsError(f"{path} exists already; move it away or choose another folder")
    aside.rename(path)
    sync_folder(path.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing, if it may be.

    On NFS a removed file that is still open, such as a held lock, keeps its folder: call it after.
    """
    with suppress(OSError):
        folder.rmdir()
