"""A run that can be continued: optimizer state, data position and results beside the weights.

Everything random derives from (seed, step, sample), so there is no random state to save.
"""

import errno
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from data_prep.tokenizer import Tokenizer
from model.checkpoint import load_weights, named_weights, save_weights, write_tensors
from model.config import GPTConfig
from model.gpt import GPT
from storage.atomic import new_folder, read_json, write_json
from storage.checkpoint_folder import set_aside, step_of, verify_checkpoint, write_manifest
from storage.run_folder import RunFolder
from train.checkpoints.host_copy import OPTIMIZER, WEIGHTS

FORMAT = 4


@dataclass(frozen=True)
class RunPosition:
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


def load_position(checkpoint: Path) -> RunPosition:
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
        return RunPosition(**found)  # format 1 had no lines, 2 no micro-batch, 3 no windows
    except TypeError as error:
        raise ValueError(f"{path} does not say where a run stood ({error}); damaged") from error


def load_checkpoint(
    checkpoint: Path, model: GPT, optimizer: Optimizer, fingerprint: str
) -> RunPosition:
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


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds, on the host."""

    position: RunPosition
    network: GPTConfig
    tensors: dict[str, Tensor]
    """As `state_tensors` names them."""
    tokenizer: Tokenizer
    results: dict[str, Any]
    """The last evaluation: its step and metrics."""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        found = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_checkpoint(folder: RunFolder, contents: CheckpointContents) -> Path:
    """Write everything a run needs to go on, and point `latest` at it.

    Raises: OSError if it cannot be written; what was there before is untouched then.
    """
    path = folder.checkpoint(contents.position.step)
    if not _is_there(path):
        _check_room(folder, contents.bytes)
        with new_folder(path) as aside:
            save_weights(aside, contents.network, contents.under(WEIGHTS))
            (aside / "tokenizer").mkdir()
            contents.tokenizer.save(aside / "tokenizer")
            write_tensors(aside / "optimizer.safetensors", contents.under(OPTIMIZER))
            write_json(aside / "results.json", contents.results)
            write_json(aside / "state.json", {"format": FORMAT, **asdict(contents.position)})
            write_manifest(aside)
    folder.point_latest_at(path)
    return path


def _is_there(path: Path) -> bool:
    """Whether this very state was saved before; a damaged one of that name is set aside."""
    if not path.exists():
        return False
    try:
        verify_checkpoint(path)
    except ValueError as error:
        log.warning("%s; moved to %s", error, set_aside(path))
        return False
    return True


def _check_room(folder: RunFolder, size: int) -> None:
    """A disk filled to the last byte would take the metrics and the status with it."""
    free = shutil.disk_usage(folder.path).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {size / 1e9:.2f} GB needed")


def validation_loss_of(checkpoint: Path) -> float | None:
    """The validation loss measured on just these weights, if it was."""
    try:
        results = read_json(checkpoint / "results.json")
    except (OSError, ValueError):
        return None
    same = results.get("step") == step_of(checkpoint)
    return results["metrics"].get("val/loss") if same else None
