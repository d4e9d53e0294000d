"""The console: a row for a step now and then, a small table for each evaluation.

On a terminal a progress bar below them shows the present step.
"""

import logging
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from storage.metrics import Metrics, MetricWriter
from storage.terminal.quantities import duration, short
from storage.writers.console_rows import (
    Evaluations,
    measured,
    step_heading,
    step_row,
)

_FIRST_STEPS = 3  # a row each, whatever the clock says
_RECENT_STEPS = 20  # that speed and remaining time are computed from
_ROWS_BELOW_A_HEADING = 20
_TIMES_RARER_WITH_A_BAR = 10
log = logging.getLogger(__name__)


class _Pace:
    """Seconds of a step lately, and of the pauses for evaluation that come at intervals."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._timed = 0
        self._ended_at: float | None = None
        self._pauses: list[float] = []
        self._evaluated: list[int] = []

    def note(self, step: int, seconds: float, evaluated: bool, now: float) -> None:
        """A step of this process that took `seconds`; `evaluated` before it."""
        self._timed += 1
        if self._timed == 2:  # the first step also compiles and fills caches
            self._recent.clear()
        self._recent.append(seconds)
        if evaluated:
            self._evaluated.append(step)
            if self._ended_at is not None:
                self._pauses.append(max(now - self._ended_at - seconds, 0.0))
        self._ended_at = now

    @property
    def step_seconds(self) -> float:
        """Mean of the last few steps."""
        return statistics.mean(self._recent)

    def seconds_left(self, step: int, steps: int) -> float:
        """Until the last step is done: its steps, and its pauses once one is known."""
        left = (steps - step - 1) * self.step_seconds
        if self._pauses:
            interval = max(math.gcd(*self._evaluated), 1)
            left += statistics.mean(self._pauses) * ((steps - step - 1) // interval)
        return left


class _Bar:
    """The last line of a terminal: how far the run is, and when it will end. Log lines go above."""

    def __init__(self, steps: int) -> None:
        tqdm.monitor_interval = 0  # a thread that would redraw a bar whose steps are slow
        self._around = ExitStack()
        form = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{desc}"
        self._bar = tqdm(
            total=steps, file=sys.stdout, dynamic_ncols=True, leave=False, bar_format=form
        )
        self._around.enter_context(logging_redirect_tqdm())

    def show(self, step: int, loss: float, tokens_per_second: float, left: float) -> None:
        """Draw the state after a step."""
        text = f"  loss {loss:.3f}  {short(tokens_per_second)} tok/s  {duration(left)} left"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(step + 1 - self._bar.n)

    def close(self) -> None:
        """Remove the line."""
        self._bar.close()
        self._around.close()


class Console(MetricWriter):
    """Logs a row at most every `seconds`, for the first steps, at evaluations and at the end."""

    name = "the console"

    def __init__(
        self,
        steps: int,
        seconds: float = 1.0,
        earlier: Evaluations | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps = steps
        self._now = now
        self._evaluations = earlier or Evaluations()
        self._pace = _Pace()
        self._bar: _Bar | None = None
        self._has_bar = sys.stdout.isatty()
        self._seconds = seconds * (_TIMES_RARER_WITH_A_BAR if self._has_bar else 1)
        self._seen = 0
        self._rows = 0
        self._shown_at = -math.inf

    def write(self, step: int, metrics: Metrics) -> None:
        """Log what is due of a step's values, and all that was measured on its weights."""
        found = measured(metrics)
        if "train/loss" in metrics:
            self._write_step(step, metrics, bool(found))
        if found:
            log.info("evaluation at step %d of %d", step, self.steps)
            for row in self._evaluations.rows(found):
                log.info("%s", row.rstrip())
            self._rows = 0  # a heading follows

    def _write_step(self, step: int, metrics: Metrics, evaluated: bool) -> None:
        now, seconds = self._now(), float(metrics["speed/step_milliseconds"]) / 1000
        self._pace.note(step, seconds, evaluated, now)
        lately = self._pace.step_seconds
        left = self._pace.seconds_left(step, self.steps)
        skipped = bool(metrics.get("train/skipped"))
        due = now - self._shown_at >= self._seconds or self._seen < _FIRST_STEPS
        if due or evaluated or skipped or step == self.steps - 1:
            if self._rows % _ROWS_BELOW_A_HEADING == 0:
                log.info("%s", step_heading(self.steps, "speed/mfu" in metrics))
            log.info("%s", step_row(step, self.steps, metrics, lately, left))
            self._rows, self._shown_at = self._rows + 1, now
        if skipped:
            log.info("step %d was skipped: %s", step, _why_skipped(metrics))
        self._seen += 1
        if self._has_bar:
            self._bar = self._bar or _Bar(self.steps)
            rate = float(metrics["speed/tokens_per_second"]) * seconds / (lately or 1)
            self._bar.show(step, float(metrics["train/loss"]), rate, left)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _why_skipped(metrics: Mapping[str, Any]) -> str:
    finite = all(math.isfinite(metrics[tag]) for tag in ("train/loss", "train/grad_norm"))
    return "a spike" if finite else "loss or gradient not finite"
