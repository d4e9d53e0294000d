"""Who is there at the start, and what NCCL was doing at the end."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel.ranks import Ranks

ARRIVAL_SECONDS = 300.0


def meet(ranks: Ranks, seconds: float = ARRIVAL_SECONDS) -> None:
    """Wait until every rank has come this far.

    Raises: ValueError naming the ranks that have not in time, as rank 0 sees it.
    """
    if ranks.world_size == 1:
        return
    on_cpu = dist.get_backend() == "gloo"  # the only one that can name who is missing
    group: Any = None if on_cpu else dist.new_group(backend="gloo")
    try:
        dist.monitored_barrier(group, timedelta(seconds=seconds), wait_all_ranks=True)
    except RuntimeError as error:
        raise ValueError(
            f"not all {ranks.world_size} ranks came to the start within {seconds:.0f} s "
            f"({str(error).splitlines()[0]}); look at the logs of those that are named"
        ) from error
    finally:
        if group is not None:
            dist.destroy_process_group(group)


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
