"""Whether a run's checkpoints fit on the disk."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from storage.run_folder import RunFolder
from train.config import SaveConfig

BYTES_PER_PARAMETER = 12  # of a checkpoint: float32 weight and two moments


@dataclass(frozen=True)
class DiskSpace:
    """What a run's checkpoints will take of its disk, in bytes."""

    disk: Path
    """The folder that exists already."""
    free: int
    checkpoints: int
    """How many more of them will lie there, at most, beside one in the making."""
    of_one: int

    @property
    def needed(self) -> int:
        """For all of them and the one in the making."""
        return (self.checkpoints + 1) * self.of_one


def space_for_checkpoints(
    folder: RunFolder, save: SaveConfig, steps: int, parameters: int
) -> DiskSpace:
    """What is free and what is needed for a run of so many steps; older checkpoints make way."""
    path = folder.path.absolute()
    disk = next(p for p in (path, *path.parents) if p.exists())
    more = save.most_kept(steps) - len(folder.all_checkpoints())
    free = shutil.disk_usage(disk).free
    return DiskSpace(disk, free, max(more, 1), BYTES_PER_PARAMETER * parameters)


def check_space(room: DiskSpace) -> None:
    """Refuse to start a run whose checkpoints would not fit on the disk.

    Raises: ValueError with the space needed and free.
    """
    if room.free < room.needed:
        raise ValueError(
            f"{room.disk} has {room.free / 1e9:.1f} GB free, {room.checkpoints} checkpoints and "
            f"one in the making take {room.needed / 1e9:.1f} GB; free some space or choose "
            "another --out"
        )
