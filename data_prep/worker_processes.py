"""Worker processes: how they start, count their work together, and end with their parent.

Workers are forked from a server process that has only imported modules. So they start fast and
inherit neither threads nor locks.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_connection
from typing import Any

SECONDS_BETWEEN_LOOKS = 0.2


def default_workers() -> int:
    """One process for each CPU core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_context(module: str) -> Any:
    """The multiprocessing context for workers that run functions of `module`."""
    context = multiprocessing.get_context("forkserver")
    # "__main__" is the script: so it is imported once in the server and not by every worker.
    context.set_forkserver_preload(["__main__", module])
    return context


class Interrupted(Exception):
    """The work was asked to stop. What is unfinished is discarded."""


class SharedCounters:
    """Work that all workers have done since the parent last asked, and a flag to stop them."""

    def __init__(self, context: Any, slots: int) -> None:
        self._counts = context.Array("q", slots)
        self._stopped = context.Value("b", 0, lock=False)

    def add(self, *more: int) -> None:
        """Add finished work; called by workers. Raises: Interrupted if they should stop."""
        if self._stopped.value:
            raise Interrupted
        with self._counts.get_lock():
            for slot, count in enumerate(more):
                self._counts[slot] += count

    def take(self) -> list[int]:
        """The work added since the last call; called by the parent."""
        lock = self._counts.get_lock()
        if not lock.acquire(timeout=SECONDS_BETWEEN_LOOKS):
            return [0] * len(self._counts)  # a worker killed with the lock never releases it
        try:
            found = self._counts[:]
            self._counts[:] = [0] * len(found)
        finally:
            lock.release()
        return found

    def stop(self) -> None:
        """Make every worker discard its work at its next report."""
        self._stopped.value = 1


def follow_parent() -> None:
    """At the start of a worker: leave Ctrl-C to the parent, and exit when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # If the parent is killed, nobody closes the queue of tasks, and workers would wait for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_connection([parent.sentinel])
        os._exit(1)  # not sys.exit, which would end only this thread


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT: processes started inside keep it blocked, here it is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
