"""Threads of a process on the CPU: they affect rounding, so a run may keep their number."""

import torch

from parallel.ranks import Ranks
from storage.run_folder import RunFolder
from train.config import Config


def recorded_threads(folder: RunFolder) -> int | None:
    """Threads of a process at the last start of the run in `folder`; None if not recorded."""
    if not folder.config.is_file():
        return None
    found = folder.read_config()["run"].get("threads")
    return found if type(found) is int and found > 0 else None


def set_threads(config: Config, ranks: Ranks, recorded: int | None) -> None:
    """Have torch compute with the configured number of threads; `recorded` is the run's."""
    wanted = config.threads
    if wanted == "auto" and config.reduction == "tree":
        wanted = recorded or "auto"
    if wanted != "auto" and ranks.device.type == "cpu" and wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
