"""Step results become metric lines: read one step late, timed without evaluation and saving."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from storage.metrics import Metrics
from train.config import BatchPlan
from train.values import DIGEST, LOSS, NORM, SKIPPED, STOP, join_digest

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class Pending:
    """A step that was launched but whose values have not been read."""

    step: int
    lr: float
    first_window: int
    values: torch.Tensor
    ready: torch.cuda.Event | None
    """Says when CUDA is done with the step; on the CPU it was done when launched."""
    launched_at: float
    extra: Metrics
    """What was measured on the weights that this step started from."""


class Progress:
    """Keeps what is known of the step in flight; all ranks hold the same, one writes it."""

    def __init__(
        self, plan: BatchPlan, steps: int, flops_per_token: float, peak: float | None
    ) -> None:
        self.plan = plan
        self.steps = steps
        self.flops_per_second_at_peak = peak and peak * plan.world_size
        self.flops_per_token = flops_per_token
        self.stop_agreed = False
        self.skipped_in_a_row = 0
        self.seconds = 0.0
        self.timed_steps = 0
        self._pending: Pending | None = None
        self._clock = time.perf_counter()

    def start_clock(self) -> None:
        """Time from here on belongs to the next step."""
        self._clock = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block belongs to no step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._clock += time.perf_counter() - start

    def launched(
        self, step: int, lr: float, first_window: int, values: torch.Tensor, extra: Metrics
    ) -> None:
        """Note a step whose work has been queued; its values travel to the host meanwhile."""
        ready = None
        if values.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending = Pending(step, lr, first_window, values, ready, time.perf_counter(), extra)

    def read(self) -> tuple[int, Metrics] | None:
        """The metrics of the step in flight, waiting for it; None if there is none.

        Raises: RuntimeError after too many steps in a row that were not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        done_at = pending.launched_at
        if pending.ready is not None:
            pending.ready.synchronize()
            done_at = time.perf_counter()
        elapsed, self._clock = done_at - self._clock, done_at
        self.stop_agreed |= bool(pending.values[STOP] > 0)
        self._count_skips(pending)
        return pending.step, self._metrics(pending, elapsed) | pending.extra

    def _count_skips(self, pending: Pending) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if pending.values[SKIPPED] else 0
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(
                f"{self.skipped_in_a_row} steps in a row up to step {pending.step} had a loss or "
                "gradient that is not finite; the weights are untouched since, the last checkpoint "
                "is sound. Lower the learning rate or look at the data of these steps"
            )

    def _metrics(self, pending: Pending, elapsed: float) -> Metrics:
        if self.timed_steps > 0:  # the first step also compiles and fills caches
            self.seconds += elapsed
        self.timed_steps += 1
        mean = self.seconds / (self.timed_steps - 1) if self.timed_steps > 1 else elapsed
        speed = self.plan.tokens / elapsed
        metrics: Metrics = {
            "tokens": (pending.step + 1) * self.plan.tokens,
            "windows": pending.first_window + self.plan.windows,
            "train/loss": pending.values[LOSS].item(),
            "train/lr": pending.lr,
            "train/grad_norm": pending.values[NORM].item(),
            "train/skipped": int(pending.values[SKIPPED]),
            "data/first_window": pending.first_window,
            "data/windows": self.plan.windows,
            "data/digest": f"{join_digest(pending.values[DIGEST]):016x}",
            "speed/step_milliseconds": 1000 * elapsed,
            "speed/tokens_per_second": speed,
            "speed/seconds_left": mean * (self.steps - pending.step - 1),
        }
        if self.flops_per_second_at_peak:
            metrics["speed/mfu"] = speed * self.flops_per_token / self.flops_per_second_at_peak
        return metrics

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over this process's steps but the first; None before the second."""
        counted = self.timed_steps - 1
        return self.plan.tokens * counted / self.seconds if counted > 0 else None
