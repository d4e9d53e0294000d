"""A user error ends a script with one sentence on standard error and exit code 2."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storage.exit_codes import USER_ERROR
from storage.terminal.printable import printable

_LONG_WORD = re.compile(r"\S{250,}")


@contextmanager
def exit_on_user_error(*errors: type[Exception]) -> Iterator[None]:
    """Print the message of an error of these classes, without a traceback, and exit with code 2."""
    try:
        yield
    except errors as error:
        sys.stderr.write(f"error: {_printable(str(error))}\n")
        raise SystemExit(USER_ERROR) from None


def _printable(message: str) -> str:
    """The message, with long values cut in the middle and without control characters."""
    short = _LONG_WORD.sub(lambda found: f"{found[0][:120]}...{found[0][-100:]}", message)
    return printable(short)
