"""A user error ends a script with one sentence on standard error and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storage.exit_codes import USER_ERROR


@contextmanager
def exit_on_user_error(*errors: type[Exception]) -> Iterator[None]:
    """Print the message of an error of these classes, without a traceback, and exit with code 2."""
    try:
        yield
    except errors as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(USER_ERROR) from None
