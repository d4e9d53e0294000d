"""Prints a user error once under torchrun, by rank 0 or by the rank where it occurred."""

import io
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

from storage.exit_codes import USER_ERROR
from storage.user_errors import PATH_ERRORS, exit_on_user_error, os_error_text

RANK_0_SECONDS = 3.0  # other ranks wait this long before they exit, so that rank 0 can print


class SharedError(ValueError):
    """A user error of one rank that all ranks know and raise, so that rank 0 prints it."""


class UserErrorReport:
    """Captures the user error of a rank and prints it if no other rank does."""

    def __init__(self, rank: int, local_rank: int) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.shared = False
        self.captured = io.StringIO()

    @contextmanager
    def print_on_rank_0(self) -> Iterator[None]:
        """Turn a ValueError into exit code 2, and on rank 0 into one sentence on standard error."""
        capture = nullcontext() if self.rank == 0 else redirect_stderr(self.captured)
        with capture, exit_on_user_error(ValueError):
            try:
                yield
            except SharedError:
                self.shared = True
                raise
            except OSError as error:  # a disk that fails is no mistake of the user's
                if error.errno not in PATH_ERRORS:
                    raise
                raise ValueError(os_error_text(error)) from error

    def print_own(self, code: object) -> None:
        """Print an error of this rank alone. Ranks other than 0 call this before they exit."""
        # The first rank of each machine prints at once, because all ranks of the machine may have
        # the same error. The others wait: torchrun ends them when the first one exits. A rank that
        # is still running after that has an error of its own.
        own = code == USER_ERROR and not self.shared
        if self.rank == 0:
            return
        if not (own and self.local_rank == 0):
            time.sleep(RANK_0_SECONDS)
        if own:
            text = self.captured.getvalue()
            sys.stderr.write(f"[rank {self.rank} on {socket.gethostname()}] {text}")
            sys.stderr.flush()
