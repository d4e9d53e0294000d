"""A user error ends a script with one sentence on standard error and exit code 2."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storage.exit_codes import USER_ERROR
from storage.terminal.printable import printable

_PERMISSION = "change its permissions, or give another path"
_CURES = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.EBUSY: "give another path",
    errno.EEXIST: "give another path, or move it away",
    errno.EISDIR: "give the name of a file",
    errno.ELOOP: "its links lead in a circle: give another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENODEV: "give another path",
    errno.ENOTDIR: "give a path below a folder",
    errno.ENOTEMPTY: "give another path, or move it away",
    errno.ENXIO: "give another path",
}
# What a path that a user gave can cause, unlike a disk that fails.
PATH_ERRORS = frozenset(_CURES)
_LONG_WORD = re.compile(r"\S{250,}")


@contextmanager
def exit_on_user_error(*errors: type[Exception]) -> Iterator[None]:
    """Print the message of an error of these classes, without a traceback, and exit with code 2."""
    try:
        yield
    except errors as error:
        text = os_error_text(error) if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"error: {_printable(text)}\n")
        raise SystemExit(USER_ERROR) from None


def os_error_text(error: OSError, cure: str = "") -> str:
    """What the system said, in words, with the file and the cure: `cure`, or the usual one."""
    reason = reason_of(error)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    cure = cure or _CURES.get(error.errno or 0, "")
    return f"{where}{reason}{'; ' if cure else ''}{cure}"


def reason_of(error: Exception) -> str:
    """Why a file could not be used, without the number of the error and the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    return str(error)


def _printable(message: str) -> str:
    """The message, with long values cut in the middle and without control characters."""
    short = _LONG_WORD.sub(lambda found: f"{found[0][:120]}...{found[0][-100:]}", message)
    return printable(short)
