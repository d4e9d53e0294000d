"""CPU time and memory of a program with all its child processes, read from Linux's /proc.

`wait4` would not do: it counts only children that the program itself has waited for, and its peak
memory is that of one process.
"""

import os
import threading
from pathlib import Path

_SAMPLE_SECONDS = 0.05


class Session:
    """Samples all processes of a session: the CPU seconds of each, and the peak of their memory."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._seconds: dict[int, float] = {}
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            resident = 0
            for place in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = place.read_text().rpartition(")")[2].split()
                except (OSError, ValueError):  # the process has just ended
                    continue
                # Fields of proc(5) less 3: session, utime, stime, rss.
                if int(fields[3]) == self._leader:
                    ticks = int(fields[11]) + int(fields[12])
                    self._seconds[int(place.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
                    resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            self.peak_bytes = max(self.peak_bytes, resident)

    def end(self) -> float:
        """Stop sampling; returns the CPU seconds, without each process's last _SAMPLE_SECONDS."""
        self._ended.set()
        self._thread.join()
        return sum(self._seconds.values())
