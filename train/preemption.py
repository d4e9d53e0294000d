"""Stop signals: the handler only sets a flag, which the ranks agree on in the step's reduction."""

import logging
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
log = logging.getLogger(__name__)


class StopSignal:
    """Whether this process was asked to stop. A second SIGINT stops at once, saving nothing."""

    def __init__(self) -> None:
        self.wanted = False
        self.reason = ""

    def listen(self) -> None:
        """Take the stop signals from now on (main thread only)."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        self.reason = signal.Signals(number).name
        log.info("%s received: saving and stopping after the step in flight", self.reason)
