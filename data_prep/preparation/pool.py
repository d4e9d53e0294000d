"""Runs units in worker processes.

Workers share a progress bar, stop cleanly, and end when their parent ends. Each loads its own
tokenizer.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from data_prep.hub.supply import FileProvider
from data_prep.preparation.console import ProgressBar
from data_prep.preparation.unpacking import unpacked_ahead, with_unpacked_files
from data_prep.sources.file_source import Unit
from data_prep.tokenizer import Tokenizer
from data_prep.worker_processes import (
    SECONDS_BETWEEN_LOOKS,
    SharedCounters,
    follow_parent,
    sigint_blocked,
    worker_context,
)

_REPORT_EVERY = 64  # documents between two updates of the shared counters

_Finished = Callable[[Unit, Any], None]


class _Work(Protocol):
    """What is done with each unit. It is pickled once for every worker."""

    def run(self, unit: Unit, tokenizer: Tokenizer, progress: Any) -> Any:
        """Do it; `progress` is as in unit.py."""
        ...


def run_units(
    work: _Work,
    todo: list[Unit],
    tokenizer: Tokenizer,
    workers: int,
    bar: ProgressBar,
    provider: FileProvider,
    finished: _Finished,
) -> None:
    """Finish every unit of `todo`, and give each with its result to `finished`.

    Raises: ValueError with the first failing worker's message.
    """
    if min(workers, len(todo)) <= 1:
        for unit in todo:
            provider.wait(unit)
            finished(unit, work.run(unit, tokenizer, bar))
            provider.finished(unit)
    else:
        _run_in_processes(work, todo, tokenizer, min(workers, len(todo)), bar, provider, finished)


def _run_in_processes(
    work: _Work,
    todo: list[Unit],
    tokenizer: Tokenizer,
    workers: int,
    bar: ProgressBar,
    provider: FileProvider,
    finished: _Finished,
) -> None:
    context = worker_context("data_prep.preparation.pool")
    counters = SharedCounters(context, 3)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (work, tokenizer, counters))
    try:
        # One unit more than there are workers, so that no worker waits for its next one.
        with unpacked_ahead(work, todo, provider, workers) as ready_provider:
            queue = _UnitQueue(executor, todo, workers + 1, ready_provider)
            queue.run(counters, bar, finished)
    except BrokenProcessPool as error:
        raise ValueError(
            f"one of workers={workers} processes died, perhaps for lack of memory (a worker needs "
            "about 600 MB); the finished units are kept: run it again with fewer --workers"
        ) from error
    finally:
        counters.stop()
        executor.shutdown(wait=True, cancel_futures=True)


class _UnitQueue:
    """Submits units to the workers, in order, as soon as their files are available."""

    def __init__(
        self,
        executor: ProcessPoolExecutor,
        todo: list[Unit],
        max_running: int,
        provider: FileProvider,
    ) -> None:
        self._executor = executor
        self._waiting = deque(todo)
        self._running: dict[Future[Any], Unit] = {}
        self._max_running = max_running
        self._provider = provider

    def run(self, counters: SharedCounters, bar: ProgressBar, finished: _Finished) -> None:
        """Return when all units are finished.

        If a file cannot be fetched, the units that are running are finished first.
        Raises: the exception of a worker, or ValueError for such a file.
        """
        missing: ValueError | None = None
        while self._running or (self._waiting and missing is None):
            try:
                if missing is None:
                    self._submit()
            except ValueError as error:
                missing = error
            if self._running:
                # With a timeout, to update the bar and to look for files that have arrived.
                done, _ = wait(self._running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            else:
                done = set()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            bar.add(*counters.take())
            for future in done:
                unit = self._running.pop(future)
                finished(unit, future.result())
                self._provider.finished(unit)
        if missing is not None:
            raise missing

    def _submit(self) -> None:
        while (
            self._waiting
            and len(self._running) < self._max_running
            and self._provider.ready(self._waiting[0])
        ):
            unit = self._waiting.popleft()
            # `submit` may start a worker, and a terminal sends Ctrl-C to workers too.
            with sigint_blocked():
                self._running[self._executor.submit(_run_unit, unit)] = unit


class _Worker:
    """State of a worker process. It also adds up progress, to take the shared lock less often."""

    def __init__(self, work: _Work, tokenizer: Tokenizer, counters: SharedCounters) -> None:
        self.work = work
        self.tokenizer = tokenizer
        self._counters = counters
        self._waiting = [0, 0, 0]

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        for slot, more in enumerate((documents, tokens, text_bytes)):
            self._waiting[slot] += more
        if self._waiting[0] >= _REPORT_EVERY:
            self.report()

    def report(self) -> None:
        self._counters.add(*self._waiting)
        self._waiting = [0, 0, 0]


_worker: _Worker | None = None


def _start_worker(work: _Work, tokenizer: Tokenizer, counters: SharedCounters) -> None:
    global _worker
    follow_parent()
    _worker = _Worker(work, tokenizer, counters)


def _run_unit(unit: Unit) -> Any:
    assert _worker is not None
    work = with_unpacked_files(_worker.work, unit)
    result = work.run(unit, _worker.tokenizer, _worker)
    _worker.report()
    return result
