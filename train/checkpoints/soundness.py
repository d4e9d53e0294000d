"""Whether a checkpoint holds all that a resume needs, which its digests do not tell."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.config import GPTConfig
from storage.checkpoint_folder import OPTIMIZER_FILE
from storage.run_folder import RunFolder
from train.checkpoints.run_position import load_position
from train.optimizers.config import OptimizerConfig
from train.optimizers.registry import state_names

_SHOWN = 3


@dataclass(frozen=True)
class Resumable:
    """What a checkpoint must be made of to be resumed from."""

    network: GPTConfig
    optimizer: OptimizerConfig


def newest_sound_checkpoint(folder: RunFolder, resumable: Resumable) -> Path | None:
    """The newest checkpoint of this run that can be resumed from; newer ones are set aside.

    Raises: NewerFormat if a newer version of the program wrote it.
    """
    return folder.recover_newest_checkpoint(partial(check_resumable, resumable))


def check_resumable(resumable: Resumable, checkpoint: Path) -> None:
    """Raises: ValueError naming what is missing or damaged."""
    position = load_position(checkpoint)
    if position.step == 0:  # before the first update there is no state of an optimizer
        return
    path = checkpoint / OPTIMIZER_FILE
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); it is damaged") from error
    wanted = state_names(resumable.network, resumable.optimizer)
    if missing := wanted - found:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(wanted)} tensors of the optimizer "
            f"({_shown(missing)}), so this checkpoint is not complete"
        )
    if foreign := found - wanted:
        raise ValueError(
            f"{path} has {len(foreign)} tensors that the optimizer does not keep "
            f"({_shown(foreign)}), so this checkpoint is not sound"
        )


def _shown(names: set[str]) -> str:
    """The first few of some names."""
    return ", ".join(sorted(names)[:_SHOWN]) + ", …" * (len(names) > _SHOWN)
