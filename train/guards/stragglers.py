"""How long each rank computes before it waits for the others, and who is slow.

All ranks leave a step's reduction together and meet again in the next one, so only the time up to
the end of a step's last forward pass is a rank's own: a slow loader, a throttled GPU, a busy host.
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

SLOW = 1.5  # times the median rank
MIN_SECONDS = 0.005  # a smaller difference is the noise of a busy machine


class ComputeTime:
    """Marks the time between two updates, by hooks: the step itself knows nothing of it."""

    def __init__(self, step_model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> None:
        self.seconds: list[float] = []
        """Own time of each step since the last comparison."""
        self._mark: Callable[[], Any] = _event if ranks.device.type == "cuda" else time.perf_counter
        self._begin: Any = None
        self._end: Any = None
        self._unread: list[tuple[Any, Any]] = []
        if ranks.world_size > 1:
            step_model.register_forward_hook(self._forward_done)
            optimizer.register_step_post_hook(self._updated)

    def forget(self) -> None:
        """What was marked is no step's, or was told."""
        self.seconds.clear()
        self._unread.clear()
        self._begin = self._end = None

    def take(self) -> float:
        """This rank's median own seconds since it was last asked; 0 if nothing was marked."""
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
            self._read(keep=1)  # that of the last step may not be over on the device
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
    """Every rank's own seconds on every rank."""
    table = torch.zeros(ranks.world_size, dtype=torch.float64, device=ranks.device)
    table[ranks.rank] = seconds
    return sum_over_ranks(table).tolist()


def slow_ranks(seconds: list[float]) -> list[str]:
    """A sentence for each rank that computes much longer than the faster half of all."""
    usual = statistics.median_low(seconds)
    return [
        f"rank {rank} computes {1000 * own:.0f} ms a step before it meets the others, "
        f"{own / usual:.1f} times the median rank's {1000 * usual:.0f} ms"
        for rank, own in enumerate(seconds)
        if usual > 0 and own > SLOW * usual and own - usual > MIN_SECONDS
    ]
