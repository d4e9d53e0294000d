"""Locks between processes, also of different hosts, on an open file (flock).

The kernel releases a lock when its process ends, however it ends. Some cluster file systems have no
locks: there the caller continues without one, after a warning.
"""

import errno
import logging
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

from storage.system_modules import FCNTL as fcntl

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
LOCK_POLL_SECONDS = 0.05
log = logging.getLogger(__name__)


def take_lock(file: IO[Any], how: int = fcntl.LOCK_EX) -> None:
    """Lock an open file until it is closed; `how` is the operation of `fcntl.flock`.

    Raises: BlockingIOError if `how` contains LOCK_NB and another process has the lock.
    """
    # The file must be open for reading and writing: on NFS an exclusive lock needs a writable file
    # and a shared one a readable file (https://man7.org/linux/man-pages/man2/flock.2.html).
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_without_locks(Path(file.name).parent, str(error))


def take_lock_within(file: IO[Any], how: int, seconds: float) -> None:
    """Like `take_lock`, but try for `seconds`.

    Raises: BlockingIOError if another process still has the lock then.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return take_lock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCK_POLL_SECONDS)


@cache
def _warn_without_locks(folder: Path, reason: str) -> None:
    log.warning(
        "%s is on a file system without locks (%s); see to it yourself that nothing is started "
        "twice there",
        folder,
        reason,
    )


def has_locks(file: Path) -> bool:
    """Whether the file system of this file supports locks; takes one for an instant to find out."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True
