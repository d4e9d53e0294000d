"""A run that can be continued: optimizer state, data position and results beside the weights.

Everything random derives from (seed, step, sample), so there is no random state to save.
"""

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer

from model.checkpoint import load_weights, named_weights
from model.gpt import GPT
from storage.atomic import read_json
from storage.run_folder import RunFolder
from train.config import SaveConfig

FORMAT = 4
BYTES_PER_PARAMETER = 12  # of a checkpoint: float32 weight and two moments
DECIDE_BITS = (  # of the settings that config.json records
    *("world_size", "micro_batch", "device", "dtype", "attention", "compiled"),
    *("torch", "threads"),
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    step: int
    """Updates done."""
    next_window: int
    """First window of the training stream that no step has taken."""
    seed: int
    data: str
    """Data set folder, for tools that read the checkpoint alone."""
    data_fingerprint: str
    context_length: int
    val_tokens: int
    """Validation tokens of each validation, for evaluating the checkpoint alone."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The last metric lines: rank 0 may have died before it wrote them (since format 2)."""
    micro_batch: int | None = None
    """Windows of one forward pass of the steps before, which decide the bits (since format 3)."""
    windows: int | None = None
    """Windows that the steps took: `next_window` less those left out (since format 4)."""

    @property
    def windows_taken(self) -> int:
        """`windows`; where an older version did not count them, as if none had been left out."""
        return self.next_window if self.windows is None else self.windows


def load_optimizer(path: Path, model: GPT, optimizer: Optimizer) -> None:
    """Restore the optimizer's state, `<key>.<parameter name>` each.

    Raises: ValueError if the file is damaged or belongs to another model or optimizer.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another checkpoint") from error
    parameters = dict(named_weights(model))
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = parameters.get(name)
        if parameter is None or (tensor.dim() > 0 and tensor.shape != parameter.shape):
            raise ValueError(
                f"{path}: {full_name} of shape {tuple(tensor.shape)} fits no parameter; "
                "the checkpoint is of another model"
            )
        if tensor.dtype != parameter.dtype:
            raise ValueError(
                f"{path}: {full_name} is {tensor.dtype} but must be {parameter.dtype}; use another "
                "checkpoint"
            )
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def load_position(checkpoint: Path) -> Position:
    """Where the run stood at this checkpoint; an older format is brought up to this one.

    Raises: ValueError if its format is newer than this version's.
    """
    path = checkpoint / "state.json"
    found = read_json(path)
    version = found.pop("format", None)
    if version not in range(1, FORMAT + 1):
        raise ValueError(
            f"{path} is of format {version}, this version reads 1 to {FORMAT}; update Ratchet"
        )
    try:
        return Position(**found)  # format 1 had no lines, 2 no micro-batch, 3 no windows
    except TypeError as error:
        raise ValueError(f"{path} does not say where a run stood ({error}); damaged") from error


def load_checkpoint(
    checkpoint: Path, model: GPT, optimizer: Optimizer, fingerprint: str
) -> Position:
    """Restore weights and optimizer; the data must be the ones the run has been fed so far."""
    position = load_position(checkpoint)
    if position.data_fingerprint != fingerprint:
        raise ValueError(
            f"{checkpoint} was trained on data {position.data_fingerprint[:12]} "
            f"({position.data}), but --data is {fingerprint[:12]}; give the same data set, or "
            "start anew with another --out"
        )
    load_weights(checkpoint, model)
    load_optimizer(checkpoint / "optimizer.safetensors", model, optimizer)
    return position


def tell_other_bits(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Warn if the start before this one computed by other means, which round otherwise."""
    if not folder.config.is_file():
        return
    before = read_json(folder.config).get("run", {})
    unlike = [
        f"{key} {before[key]} -> {settings[key]}"
        for key in DECIDE_BITS
        if key in before and before[key] != settings[key]
    ]
    if unlike:
        log.warning(
            "the run goes on, but from here its last bits may not be those of an undisturbed one: "
            "%s",
            ", ".join(unlike),
        )


@dataclass(frozen=True)
class Room:
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


def room_for_checkpoints(folder: RunFolder, save: SaveConfig, steps: int, parameters: int) -> Room:
    """What is free and what is needed for a run of so many steps; older checkpoints make way."""
    path = folder.path.absolute()
    disk = next(p for p in (path, *path.parents) if p.exists())
    more = save.most_kept(steps) - len(folder.all_checkpoints())
    free = shutil.disk_usage(disk).free
    return Room(disk, free, max(more, 1), BYTES_PER_PARAMETER * parameters)


def check_space(room: Room) -> None:
    """Refuse to start a run whose checkpoints would not fit on the disk.

    Raises: ValueError with the space needed and free.
    """
    if room.free < room.needed:
        raise ValueError(
            f"{room.disk} has {room.free / 1e9:.1f} GB free, {room.checkpoints} checkpoints and "
            f"one in the making take {room.needed / 1e9:.1f} GB; free some space or choose "
            "another --out"
        )
