"""The windows of each step, read one step ahead on a thread.

The windows of a step follow one another in the training stream. Micro-batch `i` of a step goes to
rank `i % world_size`, so a step has the same tokens on any number of ranks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from data_prep.order.skipped_windows import Skips, after_skips
from data_prep.order.windows import WindowStream, read_into, windows_digest
from parallel.ranks import Ranks
from train.batch_plan import BatchPlan
from train.guards.data_recheck import DataRecheck
from train.step import StepBatch

_MOST_READ = 1 << 20  # tokens at once: more is hardly faster, and they are in memory twice


class Loader:
    """Gives this rank its windows of each step, in order, from any window on.

    Which windows a rank takes is fixed for the life of the process. How many of them go through the
    network at once is the Learner's business.
    """

    def __init__(
        self,
        stream: WindowStream,
        plan: BatchPlan,
        ranks: Ranks,
        first_window: int,
        skips: Skips = (),
        recheck: DataRecheck | None = None,
    ) -> None:
        """`recheck` reads the same data again, for as long as this loader reads them."""
        self.stream = stream
        self.ranks = ranks
        self.next_window = first_window
        self.skips = skips
        self.recheck = recheck or DataRecheck()
        self.windows_per_step = plan.windows
        self._own = _joined(plan.windows_of(ranks.rank), _MOST_READ // plan.context_length)
        shape = (sum(map(len, self._own)), plan.context_length + 1)
        pin = ranks.device.type == "cuda"
        self._dtype = stream.streams[0].token_dtype
        bits = getattr(torch, f"int{8 * self._dtype.itemsize}")
        self._buffers = [torch.empty(shape, dtype=bits, pin_memory=pin) for _ in range(2)]
        self._copied: list[Callable[[], object]] = [_nothing, _nothing]
        self._turn = 0
        self._thread = _reading_thread(ranks.device)
        self._ahead = self._read_ahead()

    def next_step(self) -> StepBatch:
        """This rank's windows of the next step, already on their way to the device."""
        first, digest, turn = self._ahead.result()
        host = self._buffers[turn]
        if self.ranks.device.type == "cuda":
            windows = host.to(self.ranks.device, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._copied[turn] = done.synchronize
        else:
            windows = host.clone()
        self.next_window = first + self.windows_per_step
        self._ahead = self._read_ahead()
        return StepBatch(first, digest, windows)

    def close(self) -> None:
        """End the reading threads."""
        self.recheck.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> Future[tuple[int, int, int]]:
        self._turn = 1 - self._turn
        first = self.next_window
        if self.skips:
            first = after_skips(first, self.windows_per_step, self.skips)
        return self._thread.submit(self._read, first, self._turn)

    def _read(self, first: int, turn: int) -> tuple[int, int, int]:
        self._copied[turn]()  # the buffer is free once its last copy has reached the device
        buffer = self._buffers[turn].numpy().view(self._dtype)
        digest, row = 0, 0
        for own in self._own:
            start, count = first + own.start, len(own)
            windows = buffer[row : row + count]
            read_into(windows, self.stream, start)
            digest = (digest + windows_digest(start, windows)) % 2**64
            row += count
        return first, digest, turn


def _joined(ranges: Sequence[range], most: int) -> list[range]:
    """The same windows in fewer ranges, none of more than `most` windows: each is read at once."""
    found: list[range] = []
    for own in ranges:
        last = found[-1] if found else range(0)
        if last and last.stop == own.start and own.stop - last.start <= most:
            found[-1] = range(last.start, own.stop)
        else:
            found.append(own)
    return found


def _reading_thread(device: torch.device) -> ThreadPoolExecutor:
    """One thread, on the rank's own GPU: by itself it would open a context on the first GPU."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, thread_name_prefix="loader")
    return ThreadPoolExecutor(1, "loader", initializer=torch.cuda.set_device, initargs=(device,))


def _nothing() -> None:
    """The copy out of a buffer that was never used."""
