"""Stop requests: signals and a time limit. They set a flag, which the ranks agree on later."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PREEMPTED_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again
# A Ctrl-C reaches every process of a terminal, and torchrun passes its own on to its workers.
SAME_KEYPRESS_SECONDS = 1.0
log = logging.getLogger(__name__)


def moment(text: str) -> float:
    """A point in time as Unix seconds, from those or from ISO 8601 (local without a zone).

    Raises: ValueError if it is neither.
    """
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ValueError(
            f"stop_at={text} is no time; give Unix seconds or ISO 8601 such as 2026-11-21T18:30"
        ) from error


class StopRequest:
    """Whether this process was asked to stop.

    A SIGINT that comes SAME_KEYPRESS_SECONDS or more after the first SIGINT stops at once, saving
    nothing; sooner it is the same one, and after other signals it is the first.
    """

    def __init__(self, stop_at: float | None = None) -> None:
        self.stop_at = stop_at
        self.wanted = False
        self.reason = ""
        self.interrupted_at: float | None = None
        """When the first SIGINT came, by the monotonic clock."""
        self.before_first_step = True
        """Until a first step is done there is nothing to save, and a stop ends the process."""

    def listen(self) -> None:
        """Take the stop signals from now on (main thread only); not a SIGHUP that nohup ignores."""
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def check_time_limit(self, seconds_needed: float) -> None:
        """Ask for a stop if `stop_at` is no further off than stopping takes."""
        if self.stop_at is not None and time.time() + seconds_needed >= self.stop_at:
            self._ask("stop-at")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._is_second():
            raise KeyboardInterrupt
        first = not self.wanted
        self._ask(signal.Signals(number).name)
        if (
            self.before_first_step and first
        ):  # another one must not cut short what follows the first
            raise SystemExit(PREEMPTED_CODE)

    def _is_second(self) -> bool:
        """Whether somebody insists, now that a SIGINT has come."""
        now = time.monotonic()
        if self.interrupted_at is None:
            self.interrupted_at = now
        return now - self.interrupted_at >= SAME_KEYPRESS_SECONDS

    def _ask(self, reason: str) -> None:
        if self.wanted:
            return
        self.wanted, self.reason = True, reason
        if not self.before_first_step:
            log.info("%s: saving and stopping after the step in flight", reason)


class StopWish:
    """Why this process was asked to end, if it was. A second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.reason = ""
        self._asked_at = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the stop signals inside the block (main thread only); not a SIGHUP under nohup."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        before = {n: signal.signal(n, self._receive) for n in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.reason:
            if number == signal.SIGINT and now - self._asked_at > SAME_KEYPRESS_SECONDS:
                raise KeyboardInterrupt
            return
        self._asked_at = now
        self.reason = f"{signal.Signals(number).name} received"
        log.info("%s: ending after the task in flight", self.reason)
