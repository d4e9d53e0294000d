"""Units of work over processes: shared progress, a clean stop, no worker outlives its parent.

Workers are forked from a server process that has imported what they need and done nothing else, so
they start at once and inherit neither threads nor locks; each builds its own tokenizer.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_connection
from pathlib import Path
from typing import Any

from data_prep.hub.supply import FileProvider
from data_prep.preparation.console import ProgressBar
from data_prep.preparation.unit import UnitWork
from data_prep.sources.file_source import Interrupted, Unit
from data_prep.tokenizer import Tokenizer, load_tokenizer

POLL_SECONDS = 0.2
REPORT_EVERY = 64  # documents between two looks at the shared counters

Todo = list[tuple[int, Unit]]


def default_workers() -> int:
    """One process for each processor core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_units(
    work: UnitWork,
    todo: Todo,
    tokenizer_folder: Path,
    workers: int,
    bar: ProgressBar,
    supply: FileProvider,
) -> None:
    """Finish every unit of `todo`. Raises: ValueError with the first failing worker's message."""
    if min(workers, len(todo)) <= 1:
        _run_here(work, todo, load_tokenizer(tokenizer_folder), bar, supply)
    else:
        _run_in_processes(work, todo, tokenizer_folder, min(workers, len(todo)), bar, supply)


def _run_here(
    work: UnitWork, todo: Todo, tokenizer: Tokenizer, bar: ProgressBar, supply: FileProvider
) -> None:
    for number, unit in todo:
        supply.wait(unit)
        work.run(number, unit, tokenizer, bar)
        supply.finished(unit)


def _run_in_processes(
    work: UnitWork,
    todo: Todo,
    tokenizer_folder: Path,
    workers: int,
    bar: ProgressBar,
    supply: FileProvider,
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "data_prep.preparation.pool"])
    counters = SharedCounters(context)
    executor = ProcessPoolExecutor(
        workers, context, _start_worker, (work, tokenizer_folder, counters)
    )
    try:
        # One more than there are workers, so that none waits for the next.
        _Line(executor, todo, workers + 1, supply).follow(counters, bar)
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of workers={workers} processes died, perhaps for lack of memory (a worker needs "
            "about 600 MB); the finished units are kept: run it again with fewer --workers"
        ) from error
    finally:
        counters.stop()
        executor.shutdown(wait=True, cancel_futures=True)


class _Line:
    """Units in their order, given to the workers as soon as their files are here."""

    def __init__(
        self, executor: ProcessPoolExecutor, todo: Todo, at_once: int, supply: FileProvider
    ) -> None:
        self._executor = executor
        self._waiting = deque(todo)
        self._running: dict[Future[None], Unit] = {}
        self._at_once = at_once
        self._supply = supply

    def follow(self, counters: "SharedCounters", bar: ProgressBar) -> None:
        """Return when all are finished. Raises: what a worker raised, or a file that cannot come.

        A missing file ends the work only after the units that run already.
        """
        missing: ValueError | None = None
        while self._running or (self._waiting and missing is None):
            try:
                if missing is None:
                    self._submit()
            except ValueError as error:
                missing = error
            if self._running:
                done, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
            else:
                done = set()
                time.sleep(POLL_SECONDS)
            bar.add(*counters.take())
            for future in done:
                future.result()
                self._supply.finished(self._running.pop(future))
        if missing is not None:
            raise missing

    def _submit(self) -> None:
        while (
            self._waiting
            and len(self._running) < self._at_once
            and self._supply.ready(self._waiting[0][1])
        ):
            number, unit = self._waiting.popleft()
            with _interrupts_wait():  # for the workers, which Ctrl-C reaches too
                self._running[self._executor.submit(_run_unit, number, unit)] = unit


class SharedCounters:
    """Work done by all workers since the parent last looked, and whether they are to stop."""

    def __init__(self, context: Any) -> None:
        self._counts = context.Array("q", 3)
        self._stopped = context.Value("b", 0, lock=False)

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Called by workers. Raises: Interrupted if they are to stop."""
        if self._stopped.value:
            raise Interrupted
        with self._counts.get_lock():
            for slot, more in enumerate((documents, tokens, text_bytes)):
                self._counts[slot] += more

    def take(self) -> tuple[int, int, int]:
        """Called by the parent: what was added since the last call."""
        lock = self._counts.get_lock()
        if not lock.acquire(timeout=POLL_SECONDS):
            return 0, 0, 0  # a worker that was killed just then may hold it for ever
        try:
            documents, tokens, text_bytes = self._counts[:]
            self._counts[:] = [0, 0, 0]
        finally:
            lock.release()
        return documents, tokens, text_bytes

    def stop(self) -> None:
        """Let every worker drop its unit at the next document."""
        self._stopped.value = 1


class _Worker:
    """What a worker process keeps between units; also sums up progress to spare the lock."""

    def __init__(self, work: UnitWork, tokenizer: Tokenizer, counters: SharedCounters) -> None:
        self.work = work
        self.tokenizer = tokenizer
        self._counters = counters
        self._waiting = [0, 0, 0]

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        for slot, more in enumerate((documents, tokens, text_bytes)):
            self._waiting[slot] += more
        if self._waiting[0] >= REPORT_EVERY:
            self.report()

    def report(self) -> None:
        self._counters.add(*self._waiting)
        self._waiting = [0, 0, 0]


_worker: _Worker | None = None


def _start_worker(work: UnitWork, tokenizer_folder: Path, counters: SharedCounters) -> None:
    global _worker
    follow_parent()
    _worker = _Worker(work, load_tokenizer(tokenizer_folder), counters)


def follow_parent() -> None:
    """What a worker does first: leave Ctrl-C to its parent, and end when that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent closes no queue, so workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_connection([parent.sentinel])
        os._exit(1)


def _run_unit(number: int, unit: Unit) -> None:
    assert _worker is not None
    _worker.work.run(number, unit, _worker.tokenizer, _worker)
    _worker.report()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold SIGINT back: new processes inherit that for good, here it is delivered at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
