"""Writers of metrics: one dict a step goes to console, JSON lines and TensorBoard.

A failing writer never stops training: it logs one error and is not used again.
"""

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Metrics = dict[str, float | int | str]
_RECENT_LINES = 4
_EVERY_STEP = ("train/", "speed/", "data/", "guard/", "tokens", "windows")
log = logging.getLogger(__name__)


class _Writer(Protocol):
    """Something that records metric lines."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record one step's metrics."""

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Record a text, such as a sample."""

    def close(self) -> None:
        """Put everything on disk."""


class JsonLinesWriter:
    """`metrics.jsonl`: one JSON object a step. A value that is not finite becomes null."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Metrics) -> None:
        """Append a line and flush it to the operating system, so that it outlives this process."""
        self.file.write(json.dumps(_as_line(step, metrics)) + "\n")
        self.file.flush()

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Do nothing: samples have their own files."""

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoard:
    """Event files in one folder. On a resume, points of steps that are done again are purged."""

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        # Imported here: only rank 0 writes, and the others would wait for it at every start.
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_unused_second(folder)
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, step: int, metrics: Metrics) -> None:
        """Add every number as a scalar."""
        for tag, value in metrics.items():
            if not isinstance(value, str):
                self.writer.add_scalar(tag, value, step)

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Add the text as preformatted Markdown."""
        indented = "".join(f"    {line}\n" for line in text.splitlines())
        self.writer.add_text(tag, indented, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


def _wait_for_unused_second(folder: Path) -> None:
    """Wait until no event file of the current second exists."""
    # TensorBoard reads event files in the order of their names, which begin with the second they
    # were opened in. Two files of one second would be read and purged in an arbitrary order.
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


class Console:
    """Log one aligned line for each training step and one for each evaluation."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def write(self, step: int, metrics: Metrics) -> None:
        """Log the step's values in columns, and all other values on a line of their own."""
        head = f"step {step:>{len(str(self.steps))}}/{self.steps}"
        if "train/loss" in metrics:
            log.info("%s", " | ".join([head, *_training_columns(metrics)]))
        found = {k: v for k, v in metrics.items() if not k.startswith(_EVERY_STEP)}
        if found:
            log.info("%s | %s", head, " | ".join(_brief(k, v) for k, v in found.items()))

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Do nothing: a text is too long for a line."""

    def close(self) -> None:
        """Do nothing: there is no file to close."""


def _training_columns(metrics: Metrics) -> list[str]:
    columns = [
        f"loss {metrics['train/loss']:7.4f}",
        f"lr {metrics['train/lr']:.2e}",
        f"norm {metrics['train/grad_norm']:6.3f}",
        f"{metrics['speed/step_milliseconds']:7.0f} ms",
        f"{metrics['speed/tokens_per_second']:9,.0f} tok/s",
    ]
    if "speed/mfu" in metrics:
        columns.append(f"MFU {100 * float(metrics['speed/mfu']):4.1f}%")
    columns.append(f"ETA {duration(float(metrics['speed/seconds_left']))}")
    if metrics.get("train/skipped"):
        values = (metrics["train/loss"], metrics["train/grad_norm"])
        why = "loss or gradient not finite" if any(map(_is_not_finite, values)) else "a spike"
        columns.append(f"SKIPPED: {why}")
    return columns


def _brief(tag: str, value: float | str) -> str:
    return f"{tag} {value:.4f}" if isinstance(value, float) else f"{tag} {value}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    total = round(seconds)
    return f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}"


def _as_line(step: int, metrics: Metrics) -> dict[str, Any]:
    """The object of a metric line: the step, then the metrics as `as_json` gives them."""
    return {"step": step} | as_json(metrics)


def as_json(metrics: Mapping[str, float | str]) -> dict[str, Any]:
    """Metrics with None for values that are not finite: JSON has no NaN and no infinity."""
    return {tag: None if _is_not_finite(value) else value for tag, value in metrics.items()}


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class MetricLog:
    """Passes metrics to every writer; removes a writer that fails, with one error in the log."""

    def __init__(self, writers: list[_Writer]) -> None:
        self.writers = writers
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_LINES)
        """The last lines, kept on ranks without writers too: the rank that writes may die."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Record one step's metrics."""
        self.recent.append(_as_line(step, metrics))
        self._each(lambda writer: writer.write(step, metrics))

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Record a text."""
        self._each(lambda writer: writer.write_text(step, tag, text))

    def close(self) -> None:
        """Close every writer."""
        self._each(lambda writer: writer.close())

    def _each(self, action: Callable[[_Writer], None]) -> None:
        # A copy of the list: a failing writer is removed from it inside the loop.
        for writer in list(self.writers):
            try:
                action(writer)
            except (OSError, RuntimeError, ValueError) as error:
                self.writers.remove(writer)
                name = type(writer).__name__
                log.error("%s can no longer be written (%s); training continues", name, error)
