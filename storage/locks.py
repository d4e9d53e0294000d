"""Locks between processes, on any host that sees the file; they end with the process at the latest.

Some file systems of clusters have none. There the work goes on, after a warning.
"""

import errno
import fcntl
import logging
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
POLL_SECONDS = 0.05
log = logging.getLogger(__name__)


def take_lock(file: IO[Any], how: int = fcntl.LOCK_EX) -> None:
    """Lock an open file until it is closed; `how` as for `flock`.

    Open it to read and write: NFS gives exclusive locks to writers and shared ones to readers only.
    Raises: BlockingIOError if `how` says not to wait and another process has the lock.
    """
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _tell_that_there_are_none(Path(file.name).parent, str(error))


def take_lock_within(file: IO[Any], how: int, seconds: float) -> None:
    """The same, trying for so long: others hold a free lock for an instant, to see that it is free.

    Raises: BlockingIOError if another process keeps it.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return take_lock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


@cache
def _tell_that_there_are_none(folder: Path, reason: str) -> None:
    log.warning(
        "%s lies on a file system without locks (%s); see to it yourself that nothing is started "
        "twice there",
        folder,
        reason,
    )


def has_locks(file: Path) -> bool:
    """Whether the file system that this file lies on has locks."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True
