"""TensorBoard's event files: points and pages by step, in files whose names sort as written.

TensorBoard reads the event files of a folder in the order of their names, which begin with the
second they were opened in. A clock that went back, or two starts within a second, would put them
in another order. So a new file is named one second after the last one, if that is later.
"""

import json
import math
import os
import re
import socket
import time
from pathlib import Path
from typing import IO, Any

from storage.json_lines import write_all
from storage.metrics import Metrics, MetricWriter
from storage.writers.board_pages import (
    BEST_LOSS,
    VAL_LOSS,
    chart_layout,
    curves,
    hparams_page,
    samples_page,
)

_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_LAST_SECOND = 10**10 - 2  # a larger one has more digits, and would sort before all others
_VERSION = "brain.Event:2"


class TensorBoard(MetricWriter):
    """The event files that one process writes to a folder. On a resume, later points are purged.

    A file is opened with the first event, and a new one after an event that could not be written:
    a reader stops at a torn event and continues with the next file.
    """

    name = "TensorBoard"

    def __init__(
        self, folder: Path, purge_step: int | None, best_loss: float | None = None
    ) -> None:
        """Points of `purge_step` and later steps in earlier files are to be purged.

        `best_loss` is the smallest validation loss before that step.
        """
        self.folder = folder
        self.purge_step = purge_step
        self._best_loss = math.inf if best_loss is None else best_loss
        self._file: IO[bytes] | None = None
        self._wall_time = 0.0

    def write(self, step: int, metrics: Metrics) -> None:
        """Add the values that are curves as scalars."""
        points = curves(metrics)
        if points.get(VAL_LOSS, math.inf) < self._best_loss:  # not if it is NaN
            self._best_loss = points[VAL_LOSS]
        if VAL_LOSS in points and self._best_loss < math.inf:
            points[BEST_LOSS] = self._best_loss
        values = [{"tag": tag, "simple_value": value} for tag, value in points.items()]
        if values:
            self._add(step, summary={"value": values})

    def write_samples(self, step: int, samples: list[tuple[str, str]]) -> None:
        """Add the samples as a page of text."""
        self._add_text(step, "samples", samples_page(samples))

    def write_settings(self, step: int, record: dict[str, Any]) -> None:
        """Add this start to the HParams page, the chart of both losses, and all settings as text.

        Of the settings of several starts TensorBoard shows the last.
        """
        for page in (hparams_page(record), chart_layout()):
            self._add(step, summary=page)
        lines = json.dumps(record, indent=2).splitlines()
        self._add_text(step, "settings", "".join(f"    {line}\n" for line in lines))

    def write_nothing(self) -> None:
        """Add an event without content."""
        self._add(0)

    def _add_text(self, step: int, tag: str, markdown: str) -> None:
        # Imported here: only rank 0 writes, and the others would wait for it at every start.
        from torch.utils.tensorboard.summary import text as text_summary

        self._add(step, summary=text_summary(tag, markdown))

    def close(self) -> None:
        """Close the event file."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _add(self, step: int, **content: Any) -> None:
        """Write one event. Raises: OSError if it could not be written whole."""
        if self._file is None:
            self._open()
        assert self._file is not None
        try:
            write_all(self._file, self._record(step, **content))
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        """Begin a new event file. One that cannot be begun leaves nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        second = _next_second(self.folder)
        self._wall_time = max(self._wall_time, float(second))
        place = f"{socket.gethostname()}.{os.getpid()}.0"
        path = self.folder / f"events.out.tfevents.{second:010d}.{place}"
        file = path.open("xb", buffering=0)
        try:
            write_all(file, self._record(0, file_version=_VERSION))
            if self.purge_step is not None:
                from tensorboard.compat.proto import event_pb2

                start = {"status": event_pb2.SessionLog.START}  # type: ignore[attr-defined]
                # Twice: of a folder's START events TensorBoard takes the first for the first start,
                # which purges nothing (_CheckForRestartAndMaybePurge, plugin_event_accumulator.py).
                write_all(file, 2 * self._record(self.purge_step, session_log=start))
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        self._file, self.purge_step = file, None

    def _record(self, step: int, **content: Any) -> bytes:
        """An event as it stands in the file: length, checksum, content, checksum."""
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Curves over relative time need times that never go back.
        self._wall_time = max(self._wall_time, time.time())
        event = event_pb2.Event(  # type: ignore[attr-defined]
            wall_time=self._wall_time, step=step, **content
        )
        taken = _Taken()
        RecordWriter(taken).write(event.SerializeToString())
        return taken.content


class _Taken:
    """A file for RecordWriter that keeps what is written."""

    content = b""

    def write(self, content: bytes) -> None:
        self.content += content


def _next_second(folder: Path) -> int:
    """The second for the name of a new event file: now, or later than every other file's."""
    names = (_NAME.match(path.name) for path in folder.iterdir())
    taken = [int(name[1]) for name in names if name and int(name[1]) <= _LAST_SECOND]
    return max(math.floor(time.time()), max(taken, default=-1) + 1)
