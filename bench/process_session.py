"""CPU time and memory of a program with all its descendants, read from Linux's /proc.

`wait4` would not do: it counts only children that the program itself has waited for, and its peak
memory is that of one process.
"""

import os
import threading
from pathlib import Path

_SAMPLE_SECONDS = 0.05


class Session:
    """Samples a session and all descendants: the CPU seconds of each, and the peak of their memory.

    A launcher starts its ranks in sessions of their own.
    """

    def __init__(self, leader: int, every: float = _SAMPLE_SECONDS) -> None:
        self._leader, self._every = leader, every
        self._seconds: dict[int, float] = {}
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(self._every):
            resident = 0
            for place in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = place.read_text().rpartition(")")[2].split()
                except (OSError, ValueError):  # the process has just ended
                    continue
                # Fields of proc(5) less 3: parent, session, utime, stime, rss.
                if int(fields[3]) == self._leader or int(fields[1]) in self._seconds:
                    ticks = int(fields[11]) + int(fields[12])
                    self._seconds[int(place.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
                    resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            self.peak_bytes = max(self.peak_bytes, resident)

    @property
    def cpu_seconds(self) -> float:
        """The CPU seconds so far."""
        return sum(list(self._seconds.values()))

    @property
    def by_process(self) -> dict[int, float]:
        """The CPU seconds of each process so far, by its number."""
        return dict(self._seconds)

    def end(self) -> float:
        """Stop sampling; returns the CPU seconds, without each process's after its last sample."""
        self._ended.set()
        self._thread.join()
        return self.cpu_seconds
