"""Finds ranks that are missing at the start or do not respond after a failed collective."""

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

ARRIVAL_SECONDS = 300.0  # for all ranks to arrive at the start
_POLL_SECONDS = 0.02
PATIENCE_SECONDS = 3.0  # for all ranks to answer a liveness check
SHORT_PATIENCE_SECONDS = 1.0  # the same if the connection was closed, so that a peer is dead
_ANSWER_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class RendezvousStore:
    """Address of the key-value store in which ranks announce themselves."""

    host: str
    port: int
    attempt: str
    """Number of this start, because torchrun's store outlives one; empty if ranks may disagree."""
    by_torchrun: bool
    """Whether torchrun serves the store; otherwise rank 0 does."""


def rendezvous(place: RendezvousStore, rank: int, world_size: int) -> Store:
    """Wait until every rank has arrived here; returns the store, which rank 0 may be serving.

    Raises: ValueError naming the ranks that did not arrive in time. If rank 0 arrived, it prints
    the error; the other ranks raise a SharedError.
    """
    # Called before the process group is made: that waits for NCCL without a limit and does not name
    # the missing ranks.
    address = f"{place.host}:{place.port}"
    try:
        store = _store(place, rank, world_size)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        if rank == 0 and not place.by_torchrun:
            taken = "EADDRINUSE" in why
            cure = "free that port" if taken else "check that its machine can use that address"
            raise ValueError(f"rank 0 cannot serve at {address} ({why}); {cure}") from error
        server = "torchrun" if place.by_torchrun else "rank 0"
        raise ValueError(
            f"{server} does not answer at {address} ({why}); look at its log, and check that this "
            "machine reaches that address"
        ) from error
    try:
        missing = _wait_for_ranks(store, rank, world_size)
    except RuntimeError as error:
        raise SharedError(f"the server at {address} has ended; look at its log") from error
    if missing:
        kind = ValueError if 0 in missing else SharedError
        raise kind(
            f"not all {world_size} ranks started within {ARRIVAL_SECONDS:.0f} s; missing: rank "
            f"{', '.join(map(str, missing))}; look at the logs of these ranks, and check that "
            f"their machines reach {address}"
        )
    return store


def _store(place: RendezvousStore, rank: int, world_size: int) -> Store:
    """A client of the store, and on rank 0 also its server if torchrun does not serve it."""
    # multi_tenant: torch's own store of the same port will share this server.
    store = TCPStore(
        place.host,
        place.port,
        world_size,
        is_master=rank == 0 and not place.by_torchrun,
        timeout=timedelta(seconds=ARRIVAL_SECONDS),
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"ratchet/arrival/{place.attempt}", store)


def _wait_for_ranks(store: Store, rank: int, world_size: int) -> list[int]:
    """Wait for all ranks; returns those that did not arrive within ARRIVAL_SECONDS."""
    # Polls instead of a blocking wait, so that Python can handle signals.
    store.set(f"rank {rank}", "here")
    if store.add("ranks", 1) == world_size:
        store.set("everyone", "here")
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not store.check(["everyone"]):
        if time.monotonic() > deadline:
            missing = [n for n in range(world_size) if not store.check([f"rank {n}"])]
            if rank == 0 and missing:
                store.set("given up", "yes")
            # Rank 0 prints the error. The others stay until it has given up too: torchrun would end
            # rank 0 when another rank exits before.
            if rank == 0 or 0 in missing or store.check(["given up"]):
                return missing
        time.sleep(_POLL_SECONDS)
    return []


def dump_flight_record(path: Path) -> bool:
    """Write NCCL's flight record of this rank's last collectives; returns False without one.

    The record shows in which collective a rank hangs, and which ranks never joined it.
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
    """Finds ranks that do not respond. Every remaining rank makes one after a failed collective.

    It runs on a thread, because the store may hang too.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self._unresponsive: list[int] | None = None
        self._thread = threading.Thread(target=self._check, daemon=True)
        self._thread.start()

    def unresponsive_ranks(self) -> list[int]:
        """Ranks that did not answer in time; empty if that cannot be known."""
        self._thread.join(self.patience + 1)
        return self._unresponsive or []

    def _check(self) -> None:
        try:
            store: Any = distributed_c10d._get_default_store()
            store.set(f"alive/{dist.get_rank()}", "yes")
            waiting = set(range(dist.get_world_size()))
            deadline = time.monotonic() + self.patience
            while waiting and time.monotonic() < deadline:
                waiting = {rank for rank in waiting if not store.check([f"alive/{rank}"])}
                time.sleep(_ANSWER_POLL_SECONDS)
        except (RuntimeError, ValueError, AttributeError):  # rank 0's store is gone, or no group
            return
        self._unresponsive = sorted(waiting)
