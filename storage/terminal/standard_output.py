"""Standard output and error that may be closed or full: what is lost there ends no script.

In `train/main.py … | head -3` nobody reads after three lines; a disk that holds a log may be full.
"""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

_CLOSED = (errno.EPIPE, errno.EBADF, errno.ECONNRESET)


class _Unfailing(io.RawIOBase):
    """A file descriptor of which no write fails: what it does not take is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._dropped = 0
        """Bytes that were dropped and not yet reported."""
        self._closed = False

    def writable(self) -> bool:
        """Whether it takes text: always."""
        return True

    def fileno(self) -> int:
        """The descriptor, for what writes to it directly."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        """Write all of `content`, or drop what is not taken. Returns its length."""
        if self._dropped and not self._closed:
            note = f"\n[{self._dropped} bytes of output could not be written]\n"
            if not self._rest_of(note.encode()):
                self._dropped = 0
        if not self._closed:
            self._dropped += self._rest_of(bytes(content))
        return len(content)

    def _rest_of(self, content: bytes) -> int:
        """Write; returns the number of bytes that were not taken."""
        while content:
            try:
                content = content[os.write(self._descriptor, content) :]
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self._closed = error.errno in _CLOSED
                break
        return len(content)


def tolerate_lost_output() -> None:
    """From now on standard output and error may be closed or full without an error.

    Call this before logging is set up. Streams that something else has replaced stay.
    """
    for descriptor in range(3):  # a script may be started with them closed, as by `>&-`
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest free number
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and not _is_unfailing(stream):
            unfailing = _unfailing(stream, descriptor)
            setattr(sys, name, unfailing)
            setattr(sys, f"__{name}__", unfailing)


def _is_unfailing(stream: TextIO | None) -> bool:
    return isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Unfailing)


def _unfailing(stream: Any, descriptor: int) -> TextIO:
    """A stream like `stream`, or like Python's own if it is None."""
    with suppress(AttributeError, OSError, ValueError):  # it is None, full or closed
        stream.flush()
    errors = getattr(stream, "errors", "strict")
    return io.TextIOWrapper(
        io.BufferedWriter(_Unfailing(descriptor)),
        encoding=getattr(stream, "encoding", "utf-8"),
        # A character that the terminal's encoding lacks, as of a folder's name, is no error either.
        errors="backslashreplace" if errors == "strict" else errors,
        line_buffering=getattr(stream, "line_buffering", True)
        or getattr(stream, "write_through", False),
    )
