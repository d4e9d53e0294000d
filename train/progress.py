"""The step in flight: its timing, detection of a hang, and its metric line, one step late."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from parallel.stop_signals import StopRequest
from storage.metrics import Metrics
from train.batch_plan import BatchPlan
from train.guards.band.watch import BandWatch
from train.guards.spikes import Guard, GuardConfig
from train.step import DIGEST, LOSS, NORM, SKIPPED, STOP, join_digest

# torchrun signals the other ranks when one has died, and kills them 30 s later. A step that hangs
# after a signal is given up early enough to save.
_HANG_SECONDS_AFTER_A_SIGNAL = 5.0
_POLL_SECONDS = 0.0002
_HANG_STEPS = 5


class UnresponsiveRank(RuntimeError):
    """A step's reduction never ended: a rank is dead or hangs."""


@dataclass(frozen=True)
class _Pending:
    """A step that was launched but whose values have not been read."""

    step: int
    lr: float
    first_window: int
    tokens: int
    """Of all steps up to it."""
    values: torch.Tensor
    ready: torch.cuda.Event | None
    """Recorded when CUDA is done with the step; None on the CPU, where the step is done already."""
    launched_at: float
    extra: Metrics
    """What was measured on the weights that this step started from."""


class StepClock:
    """Seconds of each step of this process, without evaluation and saving."""

    def __init__(self) -> None:
        self.first_seconds = 0.0
        """Of the first step, which also compiles and fills caches."""
        self.seconds = 0.0
        """Of all later steps together."""
        self.timed_steps = 0
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Time from here on belongs to the next step."""
        self._mark = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside the block belongs to no step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - start

    def end_step(self, at: float) -> float:
        """Count a step that ended `at` (by `perf_counter`); returns its seconds."""
        elapsed, self._mark = at - self._mark, at
        if self.timed_steps > 0:
            self.seconds += elapsed
        else:
            self.first_seconds = elapsed
        self.timed_steps += 1
        return elapsed

    @property
    def step_seconds(self) -> float:
        """Mean over this process's steps but the first; 0 before the second."""
        return self.seconds / (self.timed_steps - 1) if self.timed_steps > 1 else 0.0


class _HangWatch:
    """Waits for a step on the device, and gives up when a rank does not respond."""

    def __init__(
        self, hang_seconds: float, world_size: int, clock: StepClock, stop: StopRequest
    ) -> None:
        self.hang_seconds = hang_seconds
        self.world_size = world_size
        self.clock = clock
        self.stop = stop
        self.stuck: _Pending | None = None
        """The step in which a rank stopped responding."""

    @property
    def seconds(self) -> float:
        """Seconds to wait for a rank: `hang_seconds`, or several steps where those are slow."""
        return max(self.hang_seconds, _HANG_STEPS * self.clock.first_seconds)

    def wait(self, pending: _Pending, ready: torch.cuda.Event) -> None:
        """Wait for the step. Polling in Python lets signals be handled; NCCL would wait for ever.

        Raises: UnresponsiveRank if the step does not end in time.
        """
        began, asked_at = time.monotonic(), math.inf
        while not ready.query():
            now = time.monotonic()
            if self.stop.wanted:
                # Not counted from `began`: until the signal came, a rank may have worked alone.
                asked_at = min(asked_at, now)
            usual = self.clock.step_seconds or self.clock.first_seconds
            silent = now - began > self.seconds
            silent |= now - asked_at > 2 * usual + _HANG_SECONDS_AFTER_A_SIGNAL
            # Before the first step a rank may still compile.
            if silent and self.world_size > 1 and self.clock.timed_steps > 0:
                self.stuck = pending
                raise UnresponsiveRank(
                    f"step {pending.step} has not ended for {now - began:.0f} s; if steps really "
                    "take so long, give a larger --hang-seconds"
                )
            time.sleep(_POLL_SECONDS)


class Progress:
    """The step in flight. All ranks keep the same, rank 0 writes it."""

    def __init__(
        self,
        plan: BatchPlan,
        steps: int,
        flops_per_token: float,
        peak_flops: float | None,
        hang_seconds: float,
        stop: StopRequest,
        guard: Guard | None = None,
    ) -> None:
        """`peak_flops` is one GPU's, per second; None where it is not known."""
        self.windows = plan.windows
        self.tokens = plan.tokens
        self.steps = steps
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops and peak_flops * plan.world_size
        self.guard = guard or Guard(GuardConfig())
        self.band = BandWatch()
        """What compares the run with others of its recipe."""
        self.clock = StepClock()
        self.watch = _HangWatch(hang_seconds, plan.world_size, self.clock, stop)
        self.stop_agreed = False
        """Whether the ranks have agreed to stop, as read from a step's values."""
        self._pending: _Pending | None = None
        self._ended_at: float | None = None
        """When the step in flight was found to be over."""

    def launched(
        self,
        step: int,
        lr: float,
        first_window: int,
        tokens: int,
        values: torch.Tensor,
        extra: Metrics,
    ) -> None:
        """Note a step whose work has been queued; its values travel to the host meanwhile.

        `tokens` are those of all steps up to it.
        """
        ready = None
        if values.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._pending = _Pending(
            step, lr, first_window, tokens, values, ready, time.perf_counter(), extra
        )
        self._ended_at = None

    def wait(self) -> None:
        """Wait for the step in flight without reading it.

        Raises: UnresponsiveRank if the step does not end in time.
        """
        pending = self._pending
        if pending is None or pending.ready is None or self._ended_at is not None:
            return
        try:
            self.watch.wait(pending, pending.ready)
        except UnresponsiveRank:
            self._pending = None  # its values never come
            raise
        self._ended_at = time.perf_counter()

    def read(self) -> tuple[int, Metrics] | None:
        """Step and metrics of the step in flight, waiting for it; None if there is none.

        Raises: UnresponsiveRank if the step does not end in time.
        """
        self.wait()
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        ended_at = pending.launched_at if self._ended_at is None else self._ended_at
        elapsed = self.clock.end_step(ended_at)
        self.stop_agreed |= bool(pending.values[STOP] > 0)
        metrics = self._metrics(pending, elapsed) | self._guarded(pending) | pending.extra
        return pending.step, metrics | self.band.compare(pending.step, metrics)

    def _guarded(self, pending: _Pending) -> Metrics:
        """How the step compares with the steps before it, which from then on include it."""
        loss, norm = pending.values[LOSS].item(), pending.values[NORM].item()
        skipped = bool(pending.values[SKIPPED])
        metrics = self.guard.z_scores(pending.step, loss, norm)
        self.guard.record(pending.step, pending.first_window, loss, norm, skipped)
        return metrics

    def _metrics(self, pending: _Pending, elapsed: float) -> Metrics:
        values, speed = pending.values, self.tokens / elapsed
        mean_seconds = self.clock.step_seconds or elapsed
        metrics: Metrics = {
            "tokens": pending.tokens,
            "windows": pending.first_window + self.windows,
            "train/loss": values[LOSS].item(),
            "train/lr": pending.lr,
            "train/grad_norm": values[NORM].item(),
            "train/skipped": int(values[SKIPPED]),
            "data/first_window": pending.first_window,
            "data/windows": self.windows,
            "data/digest": f"{join_digest(values[DIGEST]):016x}",
            "speed/step_milliseconds": 1000 * elapsed,
            "speed/tokens_per_second": speed,
            "speed/seconds_left": mean_seconds * (self.steps - pending.step - 1),
        }
        if self.peak_flops:
            metrics["speed/mfu"] = speed * self.flops_per_token / self.peak_flops
        return metrics

    @property
    def tokens_per_second(self) -> float | None:
        """Over all ranks, mean over this process's steps but the first; None before the second."""
        seconds = self.clock.step_seconds
        return self.tokens / seconds if seconds else None
