"""Plans a whole source: every file, in several processes, and only once for all parts.

Plans of large files are kept in the work folder. A later start, another part, or a start after the
repair of one file reads only the other files.
"""

import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.dataset.manifest import SourceFile
from data_prep.planning.file_plan import FilePlan, file_plan_from_json, plan_file
from data_prep.sources.file_source import DocumentSource
from data_prep.sources.formats import format_of
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from data_prep.worker_processes import (
    SECONDS_BETWEEN_LOOKS,
    SharedCounters,
    follow_parent,
    sigint_blocked,
    worker_context,
)
from storage.atomic import read_json, write_json
from storage.digest import fingerprint

_VERSION = 1  # of how a file is planned
_PIECES_PER_UNIT = 16  # at least: a token takes a byte or more, so units are full within 1/16
_SMALL_FILE = 1 << 24  # bytes; of very many smaller files, only some are sampled
_MOST_SMALL_FILES = 256
_SAVED_FILE = 1 << 20  # bytes; a smaller one is planned again at each start
_IN_PROCESSES = 1 << 26  # bytes of a source that is worth worker processes and a progress bar
_SECONDS_BETWEEN_LINES = 30.0  # of the bar when standard error is a file
_STEPS_PER_OCTAVE = 16  # a common rate is rounded, so that the repair of a file does not change it

# Bytes of English web text per GPT-2 token: FineWeb-Edu's sample-10BT has 45.97 GB of text and
# 9.944e9 tokens. Used for files of the Hub, which are planned before they are here.
_BYTES_PER_TOKEN = 4.6
_ENGLISH = (
    "The girl walked down to the river in the morning, because her brother had said that the water "
    "was high after so much rain. In many countries, researchers have measured how the amount of "
    "carbon in the soil changes when a forest becomes a field; the results were published in 2011. "
    "Students should read the first chapter before the lesson and answer the questions at its end."
)


@dataclass(frozen=True)
class _SourcePlan:
    """The plans of all files of a source, and what is wrong with files that cannot be planned."""

    files: list[FilePlan]
    failed: dict[int, str] = field(default_factory=dict)
    """By the number of the file. Its plan is empty."""


@dataclass(frozen=True)
class _Task:
    """What a worker needs to plan any file."""

    source: DocumentSource
    piece_bytes: int
    tokenizer: Tokenizer
    sampled: frozenset[int]

    def run(self, number: int, progress: Callable[[int], None]) -> FilePlan:
        """The plan of a file; `progress` gets parts of the size of the file."""
        left = self.source.identity().files[number].bytes

        def within_file(size: int) -> None:  # the content of a compressed file is larger
            nonlocal left
            progress(min(size, left))
            left -= min(size, left)

        chosen = number in self.sampled
        plan = plan_file(self.source, number, self.piece_bytes, self.tokenizer, chosen, within_file)
        progress(left)
        return plan


def plan_source(
    source: DocumentSource,
    shard_tokens: int,
    tokenizer: Tokenizer,
    saved: Path | None = None,
    workers: int = 1,
    tolerant: bool = False,
) -> _SourcePlan:
    """Plan all files; `saved` is a file that keeps the plans of large ones.

    With `tolerant`, files that cannot be planned are in `failed`.
    Raises: ValueError for such a file otherwise.
    """
    files = source.identity().files
    piece_bytes = max(1, shard_tokens // _PIECES_PER_UNIT)
    task = _Task(source, piece_bytes, tokenizer, _sampled(files))
    known = _SavedPlans(saved, task)
    plans = {n: plan for n, file in enumerate(files) if (plan := known.get(file)) is not None}
    todo = [number for number in range(len(files)) if number not in plans]
    failed: dict[int, str] = {}
    try:
        with closing(_planned(task, todo, workers)) as found:
            for number, future in found:
                try:
                    plans[number] = future.result()
                except ValueError as error:
                    if not tolerant:
                        raise
                    plans[number], failed[number] = FilePlan((), 0.0, 0.0), str(error)
                else:
                    known.add(files[number], plans[number])
    finally:
        known.save()
    complete = _with_common_rates(files, [plans[n] for n in range(len(files))], tokenizer)
    return _SourcePlan(complete, failed)


def _sampled(files: Sequence[SourceFile]) -> frozenset[int]:
    """The numbers of the files to sample: all large ones, and up to 256 others."""
    small = sum(file.bytes < _SMALL_FILE for file in files)
    share = 1 << max(0, (small // _MOST_SMALL_FILES).bit_length())
    return frozenset(
        number
        for number, file in enumerate(files)
        if file.bytes >= _SMALL_FILE or small <= _MOST_SMALL_FILES or _cell(file.sha256, share) == 0
    )


def _cell(sha256: str, cells: int) -> int:
    return int(sha256[:8], 16) % cells


class _SavedPlans:
    """Plans of large files on disk, by the sha256 of the file."""

    def __init__(self, path: Path | None, task: _Task) -> None:
        self._path = path
        self._of = fingerprint(
            {
                "version": _VERSION,
                "reading": task.source.settings(),
                "piece_bytes": task.piece_bytes,
                "tokenizer": task.tokenizer.ranks_sha256,
            }
        )
        self._plans = _read_plans(path, self._of) if path else {}
        self._changed = False

    def get(self, file: SourceFile) -> FilePlan | None:
        """The plan of a file, if there is one."""
        try:
            return file_plan_from_json(self._plans[_key(file)])
        except (KeyError, TypeError):  # missing or damaged: the file is planned again
            return None

    def add(self, file: SourceFile, plan: FilePlan) -> None:
        """Keep a plan."""
        if file.bytes >= _SAVED_FILE:
            self._plans[_key(file)] = plan.as_json()
            self._changed = True

    def save(self) -> None:
        """Write what is new."""
        if self._path is not None and self._changed:
            write_json(self._path, {"of": self._of, "files": self._plans})


def _read_plans(path: Path, of: str) -> dict[str, Any]:
    """The plans in the file; none if it is missing, damaged or of other options."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    same = isinstance(found, dict) and found.get("of") == of
    return found["files"] if same and isinstance(found.get("files"), dict) else {}


def _key(file: SourceFile) -> str:
    return f"{file.sha256}{format_of(file.name)}"


def _planned(
    task: _Task, todo: list[int], workers: int
) -> Generator[tuple[int, Future[FilePlan]], None, None]:
    """The plan of each file of `todo`, as soon as it is there."""
    files = task.source.identity().files
    total = sum(files[number].bytes for number in todo)
    with _bar(total) as bar:
        if total < _IN_PROCESSES or min(workers, len(todo)) <= 1:
            for number in todo:
                future: Future[FilePlan] = Future()
                try:
                    future.set_result(task.run(number, bar.update))
                except ValueError as error:
                    future.set_exception(error)
                yield number, future
        else:
            yield from _in_processes(task, todo, min(workers, len(todo)), bar)


@contextmanager
def _bar(total: int) -> Iterator[Any]:
    interval = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    shape = {"unit": "B", "unit_scale": True, "mininterval": interval}
    with tqdm(total=total, desc="planning", disable=total < _IN_PROCESSES, **shape) as bar:
        yield bar


def _in_processes(
    task: _Task, todo: list[int], workers: int, bar: Any
) -> Iterator[tuple[int, Future[FilePlan]]]:
    context = worker_context("data_prep.planning.source_plan")
    counters = SharedCounters(context, 1)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (task, counters))
    try:
        with sigint_blocked():
            running = {executor.submit(_plan_in_worker, number): number for number in todo}
        while running:
            done, _ = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            bar.update(*counters.take())
            for future in done:
                yield running.pop(future), future
    finally:
        counters.stop()
        executor.shutdown(wait=True, cancel_futures=True)


_worker: tuple[_Task, SharedCounters] | None = None


def _start_worker(task: _Task, counters: SharedCounters) -> None:
    global _worker
    follow_parent()
    _worker = task, counters


def _plan_in_worker(number: int) -> FilePlan:
    assert _worker is not None
    task, counters = _worker
    return task.run(number, counters.add)


def _with_common_rates(
    files: Sequence[SourceFile], plans: list[FilePlan], tokenizer: Tokenizer
) -> list[FilePlan]:
    """The plans, with a common rate for files that were not sampled."""

    @cache
    def common(kind: str) -> tuple[float, float]:
        kinds = [format_of(file.name) for file in files]
        alike = [plan for found, plan in zip(kinds, plans, strict=True) if found == kind]
        found = [plan for plan in alike if plan.tokens_per_size is not None]
        size = sum(plan.size for plan in found)
        if not size:
            return 1 / _bytes_per_token(tokenizer), 1.0
        tokens = sum(plan.size * (plan.tokens_per_size or 0.0) for plan in found)
        text = sum(plan.size * (plan.text_per_size or 0.0) for plan in found)
        return rounded(tokens / size), rounded(text / size)

    complete = []
    for file, plan in zip(files, plans, strict=True):
        if plan.tokens_per_size is None:
            tokens, text = common(format_of(file.name))
            plan = replace(plan, tokens_per_size=tokens, text_per_size=text)
        complete.append(plan)
    return complete


def rounded(value: float) -> float:
    """The nearest of the values that divide an octave into 16 equal steps; at most 2.2 % off."""
    if value <= 0:
        return 0.0
    step = round(math.log2(value) * _STEPS_PER_OCTAVE)
    # Of 32 bits, because the last bit of a power differs between machines.
    mantissa, exponent = math.frexp(2.0 ** (step / _STEPS_PER_OCTAVE))
    return math.ldexp(round(mantissa * 2**32), exponent - 32)


def _bytes_per_token(tokenizer: Tokenizer) -> float:
    """Bytes of English text per token."""
    ours, gpt2 = (len(t.encode(_ENGLISH)) for t in (tokenizer, gpt2_tokenizer()))
    return _BYTES_PER_TOKEN * gpt2 / ours
