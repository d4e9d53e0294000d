"""A user's mistake under torchrun: which rank tells it, so that it is told, and told once."""

import io
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

from storage.mistakes import USER_ERROR, told_in_one_sentence

LAST_WORD_SECONDS = 3.0


class SharedError(ValueError):
    """One rank's mistake, which every rank has been told and raises: it is rank 0's to tell."""


@contextmanager
def told_by_one_rank(rank: int, local_rank: int) -> Iterator[None]:
    """Turn a ValueError into one sentence on standard error and exit code 2.

    One that is not shared the first rank of each machine tells at once: all of it may have made
    it. The others wait, for torchrun ends them when the first one leaves; who is still there after
    that made a mistake of its own.
    """
    unsaid, shared = io.StringIO(), False
    silence = nullcontext() if rank == 0 else redirect_stderr(unsaid)
    try:
        with silence, told_in_one_sentence(ValueError):
            try:
                yield
            except SharedError:
                shared = True
                raise
    except SystemExit as end:
        own = end.code == USER_ERROR and not shared
        if rank != 0 and not (own and local_rank == 0):
            time.sleep(LAST_WORD_SECONDS)
        if rank != 0 and own:
            sys.stderr.write(f"[rank {rank} on {socket.gethostname()}] {unsaid.getvalue()}")
            sys.stderr.flush()
        raise
