"""Which ranks still answer after a collective has failed, so that the silent one can be named."""

import threading
import time
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

PATIENCE_SECONDS = 3.0
SHORT_PATIENCE_SECONDS = 1.0  # where a peer's kernel has said already that it is gone
POLL_SECONDS = 0.05


class RollCall:
    """Every survivor makes one; it answers and listens on a thread, for the store may hang too."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self._silent: list[int] | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def silent(self) -> list[int]:
        """Ranks that did not answer in time; none if nobody can say."""
        self._thread.join(self.patience + 1)
        return self._silent or []

    def _call(self) -> None:
        try:
            store: Any = distributed_c10d._get_default_store()
            store.set(f"alive/{dist.get_rank()}", "yes")
            waiting = set(range(dist.get_world_size()))
            deadline = time.monotonic() + self.patience
            while waiting and time.monotonic() < deadline:
                waiting = {rank for rank in waiting if not store.check([f"alive/{rank}"])}
                time.sleep(POLL_SECONDS)
        except (RuntimeError, ValueError, AttributeError):  # rank 0 held the store, or no group
            return
        self._silent = sorted(waiting)
