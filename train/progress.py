"""Step results become metric lines: read one step late, timed without evaluation and saving."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from parallel.stop_signals import StopRequest
from storage.metrics import Metrics
from train.batch_plan import BatchPlan
from train.guards.spikes import Guard, GuardConfig


class SilentRank(RuntimeError):
    """A step's reduction never ended: a rank is dead or hangs."""


# A stop is asked for while a step hangs: torchrun's word that a rank is dead, 30 s before SIGKILL.
HANG_SECONDS_AFTER_A_SIGNAL = 5.0
POLL_SECONDS = 0.0002
PATIENCE_STEPS = 5


@dataclass(frozen=True)
class Pending:
    """A step that was launched but whose values have not been read."""

    step: int
    lr: float
    first_window: int
    tokens: int
    """Of all steps up to it."""
    values: torch.Tensor
    ready: torch.cuda.Event | None
    """Says when CUDA is done with the step; on the CPU it was done when launched."""
    launched_at: float
    extra: Metrics
    """What was measured on the weights that this step started from."""


class Progress:
    """Keeps what is known of the step in flight; all ranks hold the same, one writes it."""

    def __init__(
        self,
        plan: BatchPlan,
        steps: int,
        flops_per_token: float,
        peak: float | None,
        hang_seconds: float,
        stop: StopRequest,
        guard: Guard | None = None,
    ) -> None:
        self.plan = plan
        self.steps = steps
        self.flops_per_second_at_peak = peak and peak * plan.world_size
        self.flops_per_token = flops_per_token
        self.hang_seconds = hang_seconds
        self.stop = stop
        self.guard = guard or Guard(GuardConfig())
        self.stop_agreed = False
        self.stuck: Pending | None = None
        """The step in which a rank fell silent."""
        self.first_seconds = 0.0
        self.seconds = 0.0
        self.timed_steps = 0
        self._pending: Pending | None = None
        self._ended_at: float | None = None
        """When the step in flight was found to be over."""
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
        self._pending = Pending(
            step, lr, first_window, tokens, values, ready, time.perf_counter(), extra
        )
        self._ended_at = None

    def wait(self) -> None:
        """Wait for the step in flight without reading it. Raises: SilentRank, as `read` does."""
        pending = self._pending
        if pending is not None and pending.ready is not None and self._ended_at is None:
            self._wait(pending, pending.ready)
            self._ended_at = time.perf_counter()

    def read(self) -> tuple[int, Metrics] | None:
        """The metrics of the step in flight, waiting for it; None if there is none.

        Raises: SilentRank if CUDA does not come to the end of the step.
        """
        self.wait()
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        done_at = pending.launched_at if self._ended_at is None else self._ended_at
        elapsed, self._clock = done_at - self._clock, done_at
        self.stop.before_first_step = False
        self.stop_agreed |= bool(pending.values[STOP] > 0)
        metrics = self._metrics(pending, elapsed) | self._judge(pending)
        return pending.step, metrics | pending.extra

    def _wait(self, pending: Pending, ready: torch.cuda.Event) -> None:
        """Wait as Python does, so that signals are heard; NCCL never ends without all ranks."""
        began, asked_at = time.monotonic(), math.inf
        while not ready.query():
            now = time.monotonic()
            if self.stop.wanted:  # not since `began`: until then a rank may have worked alone
                asked_at = min(asked_at, now)
            usual = self.step_seconds or self.first_seconds  # which also compiles
            silent = now - began > self.patience
            silent |= now - asked_at > 2 * usual + HANG_SECONDS_AFTER_A_SIGNAL
            alone = self.plan.world_size == 1 or self.stop.before_first_step
            if silent and not alone:
                self.stuck, self._pending = pending, None
                raise SilentRank(
                    f"step {pending.step} has not ended for {now - began:.0f} s; if steps really "
                    "take so long, give a larger --hang-seconds"
                )
            time.sleep(POLL_SECONDS)

    def _judge(self, pending: Pending) -> Metrics:
        """How the step compares with those before it, which then are those up to it."""
        loss, norm = pending.values[LOSS].item(), pending.values[NORM].item()
        skipped = bool(pending.values[SKIPPED])
        metrics = self.guard.z_scores(pending.step, loss, norm)
        self.guard.record(pending.step, pending.first_window, loss, norm, skipped)
        return metrics

    def _metrics(self, pending: Pending, elapsed: float) -> Metrics:
        if self.timed_steps > 0:  # the first step also compiles and fills caches
            self.seconds += elapsed
        else:
            self.first_seconds = elapsed
        self.timed_steps += 1
        mean = self.seconds / (self.timed_steps - 1) if self.timed_steps > 1 else elapsed
        speed = self.plan.tokens / elapsed
        metrics: Metrics = {
            "tokens": pending.tokens,
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
    def patience(self) -> float:
        """Seconds to wait for a silent rank: on slow machines several steps, not `hang_seconds`."""
        return max(self.hang_seconds, PATIENCE_STEPS * self.first_seconds)

    @property
    def step_seconds(self) -> float:
        """Mean over this process's steps but the first; 0 before the second."""
        return self.seconds / (self.timed_steps - 1) if self.timed_steps > 1 else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over this process's steps but the first; None before the second."""
        counted = self.timed_steps - 1
        return self.plan.tokens * counted / self.seconds if counted > 0 else None


LOSS, STOP, DIGEST = 0, 1, slice(2, 6)  # summed over ranks
NORM, SKIPPED = 6, 7  # the same on every rank, filled in after the sum
VALUES = 8
_SHIFTS = (0, 16, 32, 48)


def split_digest(digest: int) -> torch.Tensor:
    """A 64-bit digest as four 16-bit parts, lowest first. Shape: (4,) float64."""
    return torch.tensor([(digest >> shift) & 0xFFFF for shift in _SHIFTS]).double()


def join_digest(parts: Iterable[torch.Tensor]) -> int:
    """The digest modulo 2**64 from parts that were summed over ranks."""
    return sum(int(part) << shift for part, shift in zip(parts, _SHIFTS, strict=True)) % 2**64
