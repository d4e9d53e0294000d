"""A user's mistake under torchrun: which rank tells it, so that it is told, and told once."""

import io
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

from storage.user_errors import USER_ERROR, exit_on_user_error

LAST_WORD_SECONDS = 3.0


class SharedError(ValueError):
    """One rank's mistake, which every rank has been told and raises: it is rank 0's to tell."""


class UserErrorReport:
    """What a rank has to say of a mistake, if it made one."""

    def __init__(self, rank: int, local_rank: int) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.shared = False
        self.captured = io.StringIO()

    @contextmanager
    def print_on_rank_0(self) -> Iterator[None]:
        """Turn a ValueError into exit code 2, and on rank 0 into one sentence on standard error."""
        silence = nullcontext() if self.rank == 0 else redirect_stderr(self.captured)
        with silence, exit_on_user_error(ValueError):
            try:
                yield
            except SharedError:
                self.shared = True
                raise

    def print_own(self, code: object) -> None:
        """Before other ranks than 0 leave with this code: tell a mistake that is not shared.

        The first rank of each machine tells it at once: all of it may have made it. The others
        wait, for torchrun ends them when the first one leaves; who is still there after that made
        a mistake of its own.
        """
        own = code == USER_ERROR and not self.shared
        if self.rank == 0:
            return
        if not (own and self.local_rank == 0):
            time.sleep(LAST_WORD_SECONDS)
        if own:
            text = self.captured.getvalue()
            sys.stderr.write(f"[rank {self.rank} on {socket.gethostname()}] {text}")
            sys.stderr.flush()
