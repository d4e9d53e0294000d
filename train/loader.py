"""The windows of each step, read one step ahead on a thread.

A step's windows are a contiguous run of the training stream; micro-batch `i` of it goes to rank
`i % world_size`, so the same tokens meet in the same step on any number of ranks.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from data_prep.order.skipped_windows import Skips, after_skips
from data_prep.order.training_stream import TrainingStream, read_windows, windows_digest
from parallel.ranks import Ranks
from train.batch_plan import BatchPlan


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step."""

    first_window: int
    """First window of the step over all ranks."""
    digest: int
    """Order-free digest of this rank's windows; shares of all ranks add up modulo 2**64."""
    tokens: torch.Tensor
    """(grad_accum_steps, micro_batch, T + 1) int16 bits of uint16 ids, on the device."""

    def micro_step(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of one micro-step, each (micro_batch, T) int64."""
        ids = self.tokens[index].to(torch.int64) & 0xFFFF
        return ids[:, :-1], ids[:, 1:]


class Loader:
    """Deals windows to this rank, in order, from any window on."""

    def __init__(
        self,
        stream: TrainingStream,
        plan: BatchPlan,
        ranks: Ranks,
        first_window: int,
        skips: Skips = (),
    ) -> None:
        self.stream = stream
        self.plan = plan
        self.ranks = ranks
        self.next_window = first_window
        self.skips = skips
        shape = (plan.grad_accum_steps, plan.micro_batch, plan.context_length + 1)
        pin = ranks.device.type == "cuda"
        self._buffers = [torch.empty(shape, dtype=torch.int16, pin_memory=pin) for _ in range(2)]
        self._copied: list[Callable[[], object]] = [_nothing, _nothing]
        self._turn = 0
        self._thread = reading_thread(ranks.device)
        self._ahead = self._read_ahead()

    def next_step(self) -> StepBatch:
        """This rank's share of the next step, already on its way to the device."""
        first, digest, turn = self._ahead.result()
        host = self._buffers[turn]
        if self.ranks.device.type == "cuda":
            tokens = host.to(self.ranks.device, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._copied[turn] = done.synchronize
        else:
            tokens = host.clone()
        self.next_window = first + self.plan.windows
        self._ahead = self._read_ahead()
        return StepBatch(first, digest, tokens)

    def close(self) -> None:
        """End the reading thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _read_ahead(self) -> Future[tuple[int, int, int]]:
        self._turn = 1 - self._turn
        first = after_skips(self.next_window, self.plan.windows, self.skips)
        return self._thread.submit(self._read, first, self._turn)

    def _read(self, first: int, turn: int) -> tuple[int, int, int]:
        self._copied[turn]()  # the buffer is free once its last copy has reached the device
        plan = self.plan
        buffer = self._buffers[turn].numpy().view(np.uint16)
        digest = 0
        for micro in range(plan.grad_accum_steps):
            start = first + (micro * plan.world_size + self.ranks.rank) * plan.micro_batch
            windows = read_windows(self.stream, start, plan.micro_batch, plan.context_length)
            buffer[micro] = windows
            digest = (digest + windows_digest(start, windows)) % 2**64
        return first, digest, turn


def reading_thread(device: torch.device) -> ThreadPoolExecutor:
    """One thread, on the rank's own GPU: by itself it would open a context on the first one."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, thread_name_prefix="loader")
    return ThreadPoolExecutor(1, "loader", initializer=torch.cuda.set_device, initargs=(device,))


def _nothing() -> None:
    """Stands for a copy that never was."""
