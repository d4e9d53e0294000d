"""Checks that a run's checkpoints fit on the disk and can be written there."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from model.config import GPTConfig
from model.estimates.budget import checkpoint_bytes
from storage.run_folder import RunFolder
from train.config import Config
from train.schedule import branch_step


@dataclass(frozen=True)
class _DiskSpace:
    """Free space on a run's disk, and what its checkpoints need. All sizes in bytes."""

    disk: Path
    """An existing folder on that disk."""
    free: int
    checkpoints: int
    """Largest number of complete checkpoints that the run will add."""
    checkpoint_bytes: int

    @property
    def needed(self) -> int:
        """Space for these checkpoints and for one more that is being written."""
        return (self.checkpoints + 1) * self.checkpoint_bytes


def space_for_checkpoints(
    folder: RunFolder, config: Config, network: GPTConfig, steps: int
) -> _DiskSpace:
    """Space that is free, and space that a run of `steps` steps needs for checkpoints.

    Checkpoints that exist already do not count: they are removed as new ones are written.
    """
    # It may be a link to another disk. It does not exist before the first start: ask the nearest
    # folder that does.
    path = folder.checkpoints.resolve()
    disk = next(p for p in (path, *path.parents) if p.exists())
    kept = config.save.max_kept(steps) + (branch_step(steps, config.schedule) > 0)
    more = kept - len(folder.all_checkpoints())
    free = shutil.disk_usage(disk).free
    each = checkpoint_bytes(network, config.optimizer.update_cost(network, "cpu"))
    return _DiskSpace(disk, free, max(more, 1), each)


def check_space(space: _DiskSpace) -> None:
    """Raises: ValueError with the space needed and free, if the checkpoints do not fit."""
    if space.free < space.needed:
        raise ValueError(
            f"{space.disk} has {space.free / 1e9:.1f} GB free, {space.checkpoints} checkpoints and "
            f"one that is being written take {space.needed / 1e9:.1f} GB; free some space or "
            "choose another --out"
        )


def check_writable(folder: RunFolder) -> None:
    """Raises: ValueError if no checkpoint could be made: better now than after the last step."""
    # Not made before the first checkpoint: a folder that holds nothing else is still a new one.
    parent = folder.checkpoints if os.path.lexists(folder.checkpoints) else folder.path
    probe = parent / f".probe.{os.getpid()}.partial"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ValueError(
            f"no checkpoint can be written to {folder.checkpoints} ({error}); make it a folder in "
            "which this user may write, or choose another --out"
        ) from error
