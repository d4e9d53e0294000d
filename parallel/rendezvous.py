"""Which ranks are missing at the start, and which do not respond after a failed collective."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import (
    PrefixStore,  # type: ignore[reportPrivateImportUsage]
    Store,  # type: ignore[reportPrivateImportUsage]
    TCPStore,  # type: ignore[reportPrivateImportUsage]
    distributed_c10d,
)

from parallel.shared_errors import SharedError

ARRIVAL_SECONDS = 300.0
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 3.0
SHORT_PATIENCE_SECONDS = 1.0  # where a peer's kernel has said already that it is gone
ANSWER_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class RendezvousStore:
    """The store in which ranks say that they are there."""

    host: str
    port: int
    attempt: str
    """Which start of the job this is, if all ranks know: a launcher's store outlives one."""
    by_launcher: bool
    """Whether the launcher serves the store; otherwise rank 0 does."""


def rendezvous(place: RendezvousStore, rank: int, world_size: int) -> Store:
    """Wait until every rank has come this far; returns the store, which rank 0 may be serving.

    Comes before the process group: to build one, NCCL waits without limit and names nobody.
    Raises: ValueError naming the ranks that have not come in time, told by rank 0 if it has.
    """
    address = f"{place.host}:{place.port}"
    try:
        store = _store(place, rank, world_size)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        if rank == 0 and not place.by_launcher:
            taken = "EADDRINUSE" in why
            cure = "free that port" if taken else "look whether its machine reaches that address"
            raise ValueError(f"rank 0 cannot serve at {address} ({why}); {cure}") from error
        server = "torchrun" if place.by_launcher else "rank 0"
        raise ValueError(
            f"{server} does not answer at {address} ({why}); look at its log, and whether this "
            "machine reaches that address"
        ) from error
    try:
        missing = _missing_ranks(store, rank, world_size)
    except RuntimeError as error:
        raise SharedError(f"the server at {address} has left; look at its log") from error
    if missing:
        kind = ValueError if 0 in missing else SharedError
        raise kind(
            f"not all {world_size} ranks came to the start within {ARRIVAL_SECONDS:.0f} s; "
            f"missing: rank {', '.join(map(str, missing))}; look at the logs of those that are "
            f"named, and whether their machines reach {address}"
        )
    return store


def _store(place: RendezvousStore, rank: int, world_size: int) -> Store:
    """The store, whose server torch's own of the same port will share in this process."""
    store = TCPStore(
        place.host,
        place.port,
        world_size,
        is_master=rank == 0 and not place.by_launcher,
        timeout=timedelta(seconds=ARRIVAL_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"ratchet/arrival/{place.attempt}", store)


def _missing_ranks(store: Store, rank: int, world_size: int) -> list[int]:
    """The ranks that do not come within ARRIVAL_SECONDS; signals are heard meanwhile."""
    store.set(f"rank {rank}", "here")
    if store.add("ranks", 1) == world_size:
        store.set("everyone", "here")
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not store.check(["everyone"]):
        if time.monotonic() > deadline:
            missing = [n for n in range(world_size) if not store.check([f"rank {n}"])]
            if rank == 0 and missing:
                store.set("given up", "yes")
            # Rank 0 tells; torchrun would end it if another one left before it has.
            if rank == 0 or 0 in missing or store.check(["given up"]):
                return missing
        time.sleep(POLL_SECONDS)
    return []


def dump_flight_record(path: Path) -> bool:
    """Write what NCCL's flight recorder holds of this rank's last collectives; False without one.

    Which collective a rank hangs in, and which ranks never joined it, is in there.
    """
    dump = getattr(getattr(distributed_c10d, "torch", None), "_C", None)
    dump = getattr(getattr(dump, "_distributed_c10d", None), "_dump_nccl_trace_json", None)
    if dump is None or not dist.is_initialized() or dist.get_backend() != "nccl":
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    record = dump()
    path.write_bytes(record if isinstance(record, bytes) else str(record).encode())
    return True


class LivenessCheck:
    """Every survivor makes one; it answers and listens on a thread, for the store may hang too."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self._silent: list[int] | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def unresponsive_ranks(self) -> list[int]:
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
                time.sleep(ANSWER_POLL_SECONDS)
        except (RuntimeError, ValueError, AttributeError):  # rank 0 held the store, or no group
            return
        self._silent = sorted(waiting)
