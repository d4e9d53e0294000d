"""Stop requests: signals and a time limit. They set a flag, on which the ranks agree later."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType

from storage.exit_codes import INTERRUPTED_CODE, PREEMPTED_CODE

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
# Windows lacks some; storage/system_modules.py says there what Ratchet needs.
STOP_SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
_LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()  # of ISO 8601 with four digits
# A terminal sends a Ctrl-C to every process, and torchrun forwards its own to the workers.
SAME_KEYPRESS_SECONDS = 1.0
_CALL_SECONDS = 5.0  # for a call to end, before the process ends without closing its run
log = logging.getLogger(__name__)


def parse_time(text: str) -> float:
    """A point in time as Unix seconds, from Unix seconds or ISO 8601 (local time without a zone).

    Raises: ValueError if it is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            seconds = math.nan
    if not 0 <= seconds <= _LAST_SECOND:
        raise ValueError(
            f"stop_at={text} is no time; give Unix seconds or ISO 8601 such as 2026-11-21T18:30"
        )
    return seconds


class StopRequest:
    """Whether this process was asked to stop, and why.

    A Ctrl-C (SIGINT) that comes SAME_KEYPRESS_SECONDS or more after the first one ends the process
    at once: `KeyboardInterrupt`, or exit code 130 if the main thread does not come to it. One that
    comes sooner counts as the same key press.
    """

    def __init__(
        self,
        plan: str = "saving and stopping after the step in flight",
        stop_at: float | None = None,
        nothing_to_save: bool = True,
    ) -> None:
        """`plan` is for the log: what the process will do. `stop_at` is a limit in Unix seconds."""
        self.plan = plan
        self.stop_at = stop_at
        self.wanted = False
        self.reason = ""
        self.nothing_to_save = nothing_to_save
        """Whether a signal ends the process at once (exit code 75), because nothing is lost."""
        self.interrupted_at: float | None = None
        """When the first SIGINT was handled, by the monotonic clock."""
        self._pressed_again = False
        self._forced = False

    def listen(self) -> None:
        """Handle the stop signals from now on (main thread only)."""
        for number in self._numbers():
            signal.signal(number, self._receive)
        signal.set_wakeup_fd(self._start_clock(), warn_on_full_buffer=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the stop signals inside the block (main thread only)."""
        before = {number: signal.signal(number, self._receive) for number in self._numbers()}
        clock = self._start_clock()
        outer = signal.set_wakeup_fd(clock, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(outer)
            os.close(clock)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start_clock(self) -> int:
        """Start the thread that sees signals as they arrive; returns the file that they go to."""
        arrivals, file = os.pipe()
        os.set_blocking(file, False)
        threading.Thread(target=self._time_interrupts, args=(arrivals,), daemon=True).start()
        return file

    def _time_interrupts(self, arrivals: int) -> None:
        """Notice a second Ctrl-C while the main thread is in a long call, such as a large step.

        Python calls a handler only between two calls, once for all signals of a kind until then.
        """
        first: float | None = None
        while numbers := os.read(arrivals, 64):
            now = time.monotonic()
            if signal.SIGINT in numbers:
                first = first or now
                if now - first >= SAME_KEYPRESS_SECONDS:
                    self._pressed_again = True
                    time.sleep(_CALL_SECONDS)
                    if not self._forced:
                        os._exit(INTERRUPTED_CODE)
                    break
        os.close(arrivals)

    def check_time_limit(self, seconds_needed: float) -> None:
        """Request a stop if less than `seconds_needed`, the time that stopping takes, is left."""
        if self.stop_at is not None and time.time() + seconds_needed >= self.stop_at:
            self._request("stop-at")

    def give_up(self, reason: str) -> None:
        """Request a stop of all ranks that must not save: the caller says why."""
        if not self.wanted:
            self.wanted, self.reason = True, reason

    def _numbers(self) -> list[signal.Signals]:
        # nohup sets SIGHUP to be ignored: the process is to outlive its terminal.
        return [
            number
            for number in STOP_SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._register_interrupt():
            raise KeyboardInterrupt
        first = not self.wanted
        self._request(signal.Signals(number).name)
        # A second signal must not interrupt what the first one's SystemExit sets in motion.
        if self.nothing_to_save and first:
            raise SystemExit(PREEMPTED_CODE)

    def _register_interrupt(self) -> bool:
        """Note a SIGINT; returns whether it is a second key press."""
        now = time.monotonic()
        first, self.interrupted_at = self.interrupted_at, self.interrupted_at or now
        late = first is not None and now - first >= SAME_KEYPRESS_SECONDS
        self._forced = self._forced or late or self._pressed_again
        return late or self._pressed_again

    def _request(self, reason: str) -> None:
        if self.wanted:
            return
        self.wanted, self.reason = True, reason
        if not self.nothing_to_save:
            log.info("%s: %s", reason, self.plan)
