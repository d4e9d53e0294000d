"""`checkpoints/latest` and `best`: name a run's newest and best checkpoint, for readers.

Each is a symbolic link. Where a file system has none (exFAT, SMB, Google Drive), it is a text file
that holds the checkpoint's name.
"""

import os
from contextlib import suppress
from pathlib import Path

from storage.atomic import sync_folder
from storage.checkpoint_folder import checkpoints_in, free_path, is_step_name

_LATEST = "latest"
_BEST = "best"
_CHECKPOINTS = "checkpoints"  # the folder, in that of a run
_MAX_BYTES = 100  # of the text file


def point_latest_at(checkpoint: Path) -> None:
    """Make `latest` beside the checkpoint name it, atomically, if it does not yet.

    Raises: OSError if the folder cannot be written.
    """
    _point(_LATEST, checkpoint)


def point_best_at(checkpoint: Path) -> None:
    """The same for `best`. Raises: OSError if the folder cannot be written."""
    _point(_BEST, checkpoint)


def _point(name: str, checkpoint: Path) -> None:
    link = checkpoint.with_name(name)
    if _named_by(link) == checkpoint.name:
        return
    temporary = checkpoint.with_name(f".{name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        temporary.symlink_to(checkpoint.name)
    except OSError:  # EPERM, EOPNOTSUPP, EINVAL, ENOSYS, …: every file system has its own
        temporary.write_text(f"{checkpoint.name}\n", encoding="utf-8")
    if link.is_dir() and not link.is_symlink():  # after a copy that followed links
        link.rename(free_path(link.with_name(f"{name}.copied")))
    # Rename over the old one: between a removal and a new link a reader would find no `latest`.
    temporary.replace(link)
    sync_folder(checkpoint.parent)


def latest_name(checkpoints: Path) -> str | None:
    """The name that `latest` holds, whether or not that checkpoint exists; None without one."""
    return _named_by(checkpoints / _LATEST)


def _named_by(link: Path) -> str | None:
    try:
        if link.is_symlink():
            return os.readlink(link)
        with link.open("rb") as file:
            name = file.read(_MAX_BYTES).decode("utf-8").strip()
    except (OSError, ValueError):
        return None
    return name if is_step_name(name) else None


def follow_latest(path: Path) -> Path:
    """`path`, or the checkpoint that it stands for.

    A run's folder, or its `checkpoints/`, stands for its newest checkpoint; a text file `latest` or
    `best` for the checkpoint that it names. A symbolic link needs no help: the operating system
    follows it.
    """
    path = _newest_of_run(path)
    for folder in (path, *path.parents):
        if folder.name in (_LATEST, _BEST) and folder.is_file():
            name = _named_by(folder)
            if name is not None:
                return folder.parent / name / path.relative_to(folder)
    return path


def _newest_of_run(path: Path) -> Path:
    """The newest checkpoint, if `path` is the folder of a run or of its checkpoints."""
    for folder in (path / _CHECKPOINTS, path):
        if folder.is_dir() and folder.name == _CHECKPOINTS:
            if latest_name(folder) is not None:
                return folder / _LATEST
            return next(iter(checkpoints_in(folder)), path)
    return path
