"""A user's mistake ends a script with one sentence on standard error and exit code 2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

USER_ERROR = 2


@contextmanager
def exit_on_user_error(*mistakes: type[Exception]) -> Iterator[None]:
    """Leave with exit code 2 and the message of an error of one of these kinds."""
    try:
        yield
    except mistakes as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(USER_ERROR) from None
