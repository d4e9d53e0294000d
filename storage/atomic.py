"""Write a file or folder so that it is complete or absent: temporary name, fsync, rename.

A process that is killed while it writes leaves `.NAME.HOST.PID.partial` behind, an export of
gigabytes for one. The next that writes a folder beside it removes it. Also read JSON with a limit
on its size, and write arrays.
"""

import errno
import json
import logging
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

# What file systems answer that cannot flush a folder, such as those of VirtualBox, WSL's network
# drives and old CIFS. They write entries at once or not at all: there is nothing else to try.
_NO_FOLDER_FSYNC = {
    *(errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY),
    *(errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR),
}
_MAX_JSON_BYTES = 64 << 20  # a manifest of 100,000 shards fits; a larger file is not one of ours


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a .npy file.

    Raises: OSError with the disk's errno.
    """
    # Through memory: np.save with a path misses an error that the disk reports only at close.
    content = BytesIO()
    np.save(content, array, allow_pickle=False)
    with path.open("wb") as file:
        file.write(content.getbuffer())


def load_array(path: Path, cure: str) -> np.ndarray:
    """Read an array from a .npy file, without what a pickle in it would run.

    Raises: ValueError with the file and `cure` if it is damaged.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); {cure}") from error


def _temporary_path(path: Path) -> Path:
    """The path beside `path` that this process writes to before it renames."""
    # Host and pid: several hosts may prepare the same file in one folder of a shared file system.
    return path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.partial")


@cache
def _machine() -> str:
    """This host; inside a container also its namespace of process ids, which may count anew."""
    with suppress(OSError):
        return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes of this machine left unfinished in `folder`; never fails."""
    host = re.escape(socket.gethostname())
    # Without the namespace: as older versions named them.
    name = re.compile(rf"\..+\.(?:{re.escape(_machine())}|{host})\.(\d+)\.partial")
    with suppress(OSError):
        for path in folder.iterdir():
            found = name.fullmatch(path.name)
            if found and not _is_alive(int(found[1])):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                log.info("removed %s, which a process that died had left unfinished", path)


def _is_alive(process: int) -> bool:
    """Whether there is a process of this id on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new names, renames) survive a power cut, if that can be done."""
    # fsync of a file does not flush its entry in the folder:
    # https://man7.org/linux/man-pages/man2/fsync.2.html
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise


def sync_file(path: Path) -> None:
    """Make the file's bytes survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _is_written_through(path: Path) -> bool:
    """Whether a device is at the path, or a pipe in /dev (of a shell's `>(...)`)."""
    # Any other pipe is in the way of a file, and writing to it would wait for a reader.
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or (stat.S_ISFIFO(mode) and path.is_relative_to("/dev"))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` only if the block succeeds.

    A file already at `path` is replaced in one step; after an error it is untouched. A device,
    such as /dev/null, is written to and stays what it is.
    """
    if _is_written_through(path):
        with TemporaryDirectory() as folder:
            content = Path(folder) / "content"
            yield content
            path.write_bytes(content.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        yield temporary
        # Content before name: otherwise a power cut may leave an empty file of this name.
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) completely or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all."""
    write_text(path, _as_text(value))


def put_json(path: Path, value: Any) -> None:
    """Write `value` as JSON into a folder that exists and has not got its name yet."""
    path.write_text(_as_text(value), encoding="utf-8")


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """The parsed content of a JSON file.

    Raises: ValueError naming the file if it is not JSON, or larger than any file of ours.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(
            f"{path} is {path.stat().st_size} bytes of JSON, but must be at most {_MAX_JSON_BYTES}"
            "; it is damaged or made to fill the memory"
        )
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); it is damaged") from error


def _may_rename() -> None:
    """Nothing speaks against it."""


@contextmanager
def new_folder(path: Path, check: Callable[[], None] = _may_rename) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the name `path` only if the block succeeds.

    `check` is called just before that, and may raise an error.
    Raises: FileExistsError if `path` exists already; nothing is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    remove_leftovers(path.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        publish_folder(temporary, path, check)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, path: Path, check: Callable[[], None] = _may_rename) -> None:
    """Flush everything below `temporary` and rename it to `path`, unless `check` raises an error.

    Raises: FileExistsError if `path` exists already.
    """
    for found in sorted(temporary.rglob("*")):
        if found.is_dir():
            sync_folder(found)
        else:
            sync_file(found)
    sync_folder(temporary)
    if path.exists():
        raise FileExistsError(f"{path} exists already; move it away or choose another folder")
    check()
    temporary.rename(path)
    sync_folder(path.parent)


def remove_if_empty(folder: Path) -> None:
    """Remove the folder if it is empty and may be removed; otherwise leave it.

    Close its files first, locks too: NFS keeps a removed file that is still open in the folder.
    """
    with suppress(OSError):
        folder.rmdir()
