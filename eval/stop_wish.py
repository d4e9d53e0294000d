"""A watcher's way out: signals set a wish, which it heeds between tasks."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_KEYPRESS_SECONDS = 1.0  # torchrun passes on a Ctrl-C that its workers may have had already

log = logging.getLogger(__name__)


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
