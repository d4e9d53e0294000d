"""One dict of metrics a step goes to every writer: JSON lines, console, TensorBoard, others.

A failing writer never stops training. Its lines are kept, and written as soon as that works again.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from storage.json_lines import append_to, open_to_append
from storage.records.line_digest import LineDigest

Metrics = dict[str, float | int | str]
_RECENT_LINES = 4
MOST_KEPT_LINES = 10_000  # of a writer that fails: some 15 MB, and hours of most runs
_MOST_REFUSED = 3  # lines in a row; then a writer is given up, which may lack its library
log = logging.getLogger(__name__)


class MetricWriter:
    """Something that records metric lines. What it does not record it ignores."""

    name = "a writer"
    """What it is called in a message."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record one step's metrics. After a failure the same line is given again."""

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Record prompts, each with its continuation."""

    def write_settings(self, step: int, record: dict[str, Any]) -> None:
        """Record the settings of a start: the content of config.json."""

    def write_nothing(self) -> None:
        """Write what no reader shows, to find out whether that works."""

    def close(self) -> None:
        """Put everything on disk."""


class JsonLinesWriter(MetricWriter):
    """`metrics.jsonl`: one JSON object a step. A value that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._file: IO[bytes] | None = None

    def write(self, step: int, metrics: Metrics) -> None:
        """Append a line. It is then with the operating system, and outlives this process.

        Raises: OSError; the file is then opened again for the next line.
        """
        if self._file is None:
            self._file = open_to_append(self.path)
        try:
            append_to(self._file, _as_line(step, metrics))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _as_line(step: int, metrics: Metrics) -> dict[str, Any]:
    """The object of a metric line: the step, then the metrics as `as_json` gives them."""
    return {"step": step} | as_json(metrics)


def as_json(metrics: Mapping[str, float | str]) -> dict[str, Any]:
    """Metrics with None for values that are not finite: JSON has no NaN and no infinity."""
    return {tag: None if _is_not_finite(value) else value for tag, value in metrics.items()}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class _Channel:
    """One writer, and the lines that it could not write yet, oldest first."""

    def __init__(self, writer: MetricWriter) -> None:
        self.writer = writer
        self._kept: deque[Callable[[], None]] = deque()
        self._late = 0
        self._lost = 0
        self._refused = 0
        """Lines in a row that failed for another reason than the disk."""
        self.failing = False

    def put(self, action: Callable[[], None]) -> None:
        """Write a line behind those that are still to be written."""
        if self._refused >= _MOST_REFUSED:
            self._lost += 1
            return
        self._kept.append(action)
        self.flush()
        if len(self._kept) > MOST_KEPT_LINES:
            self._kept.popleft()
            self._lost += 1

    def flush(self) -> None:
        """Write what is still to be written. A failure is logged once, and so is its end."""
        while self._kept:
            try:
                self._kept[0]()
            except OSError as error:  # the disk, which may have room again
                self._report(error)
                return
            except Exception as error:  # this line; whatever it is, it is no reason to end a run
                self._report(error)
                self._lost += 1
                self._refused += 1
            else:
                self._late += self.failing and len(self._kept) > 1
                self._refused = 0
            self._kept.popleft()
        if self.failing and not self._refused:
            log.warning(
                "%s is written again: %d lines were late, %d are lost",
                *(self.writer.name, self._late, self._lost),
            )
            self.failing, self._late, self._lost = False, 0, 0

    def _report(self, error: Exception) -> None:
        if not self.failing:
            log.error(
                "%s cannot be written (%s: %s); its lines are kept and written once that works "
                "again, and nothing else waits for them",
                *(self.writer.name, type(error).__name__, error),
            )
        self.failing = True

    def close(self) -> None:
        """Try a last time, and close the writer."""
        self.flush()
        if lost := self._lost + len(self._kept):
            log.error("%d lines of %s could not be written and are lost", lost, self.writer.name)
        try:
            self.writer.close()
        except Exception as error:
            log.error("%s cannot be closed (%s)", self.writer.name, error)


class MetricLog:
    """Passes metrics to every writer, and keeps the lines of one that fails until it works."""

    def __init__(self, writers: list[MetricWriter]) -> None:
        self._channels = [_Channel(writer) for writer in writers]
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_LINES)
        """The last lines, kept on ranks without writers too: the rank that writes may die."""
        self.digest = LineDigest()
        """Of all lines so far, for the same reason on every rank."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record one step's metrics."""
        self.recent.append(_as_line(step, metrics))
        self.digest.add(self.recent[-1])
        for channel in self._channels:
            channel.put(partial(channel.writer.write, step, metrics))

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Record prompts, each with its continuation."""
        for channel in self._channels:
            channel.put(partial(channel.writer.write_samples, step, samples))

    def write_settings(self, step: int, record: dict[str, Any]) -> None:
        """Record the settings of a start."""
        for channel in self._channels:
            channel.put(partial(channel.writer.write_settings, step, record))

    def write_nothing(self) -> None:
        """Find out which writers work; `failing` then names the others."""
        for channel in self._channels:
            channel.put(channel.writer.write_nothing)

    def flush(self) -> None:
        """Try again to write what is still to be written."""
        for channel in self._channels:
            channel.flush()

    def failing(self) -> list[str]:
        """The names of the writers whose last line could not be written."""
        return [channel.writer.name for channel in self._channels if channel.failing]

    def close(self) -> None:
        """Close every writer."""
        for channel in self._channels:
            channel.close()
