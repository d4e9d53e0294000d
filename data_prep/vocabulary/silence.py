"""Discards what a native library prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that is written to the descriptors of stdout and stderr is shown."""
    # It writes to file descriptors 1 and 2 itself, so replacing sys.stdout would not do.
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as null:
            for number, _ in saved:
                os.dup2(null.fileno(), number)
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
