"""Finds slow ranks by the time that each one computes before it waits for the others.

All ranks leave the reduction of one step together and wait for each other in the next one. So only
the time from an update to the end of the next step's last forward pass is a rank's own. It grows
with a slow loader, a throttled GPU or a busy host.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from parallel.collectives import sum_over_ranks
from parallel.ranks import Ranks

_SLOW_RATIO = 1.5  # of a rank's compute time to the median rank's
_MIN_SECONDS = 0.005  # smaller differences are noise of a busy machine


class ComputeTime:
    """Measures a rank's own compute time per step, by hooks on the forward pass and the update."""

    def __init__(self, step_model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> None:
        self.seconds: list[float] = []
        """Compute time of each step since the last call of `take`."""
        # Work on CUDA is asynchronous, so its time is marked by events on the device.
        self._mark: Callable[[], Any] = _event if ranks.device.type == "cuda" else time.perf_counter
        self._begin: Any = None
        self._end: Any = None
        self._unread: list[tuple[Any, Any]] = []
        if ranks.world_size > 1:
            step_model.register_forward_hook(self._forward_done)
            optimizer.register_step_post_hook(self._updated)

    def forget(self) -> None:
        """Discard all measurements, such as those of a dry run."""
        self.seconds.clear()
        self._unread.clear()
        self._begin = self._end = None

    def take(self) -> float:
        """This rank's median compute time in seconds since the last call; 0 without any step."""
        self._read()
        median = statistics.median(self.seconds) if self.seconds else 0.0
        self.forget()
        return median

    def _forward_done(self, *_: Any) -> None:
        self._end = self._mark()

    def _updated(self, *_: Any) -> None:
        if self._begin is not None and self._end is not None:
            self._unread.append((self._begin, self._end))
        if len(self._unread) > 1:
            self._read(keep=1)  # the device may still work on the last step
        self._begin, self._end = self._mark(), None

    def _read(self, keep: int = 0) -> None:
        ready, self._unread = (
            self._unread[: -keep or None],
            self._unread[len(self._unread) - keep :],
        )
        self.seconds += [_between(begin, end) for begin, end in ready]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def gather_compute_times(seconds: float, ranks: Ranks) -> list[float]:
    """The compute time of all ranks in seconds, on every rank."""
    table = torch.zeros(ranks.world_size, dtype=torch.float64, device=ranks.device)
    table[ranks.rank] = seconds
    return sum_over_ranks(table).tolist()


def slow_ranks(seconds: list[float]) -> list[str]:
    """One sentence for each rank that computes much longer than the median rank."""
    usual = statistics.median_low(seconds)  # of two ranks the faster one
    return [
        f"rank {rank} computes {1000 * own:.0f} ms of each step, {own / usual:.1f} times the "
        f"median of {1000 * usual:.0f} ms"
        for rank, own in enumerate(seconds)
        if usual > 0 and own > _SLOW_RATIO * usual and own - usual > _MIN_SECONDS
    ]
