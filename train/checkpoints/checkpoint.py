"""Contents of a run's checkpoint: what is written, and how it is read back on a resume.

A folder such as `checkpoints/step_000500/` contains the weights and the shape (`model.*`), the
tokenizer, the optimizer state, the position in the data (`state.json`), the last results and a
manifest with the digest of each file. Everything random derives from (seed, step, sample), so there
is no random state to save.
"""

import errno
import logging
import shutil
from dataclasses import dataclass, field
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
from storage.atomic import new_folder, put_json, read_json
from storage.checkpoint_folder import (
    OPTIMIZER_FILE,
    RESULTS_FILE,
    STATE_FILE,
    free_path,
    set_aside,
    step_of,
    verify_checkpoint,
    write_manifest,
)
from storage.json_lines import is_number
from storage.ownership.latest import point_best_at, point_latest_at
from storage.records.line_digest import LineDigest
from storage.run_folder import RunFolder
from train.checkpoints.host_copy import OPTIMIZER, WEIGHTS
from train.checkpoints.run_position import RunPosition, check_same_data, load_position
from train.checkpoints.state_digest import append_digest, put_digest


def _load_optimizer(path: Path, model: GPT, optimizer: Optimizer) -> None:
    """Restore the optimizer's state from tensors that are named `<key>.<parameter name>`.

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
        # AdamW's step count is a scalar for each parameter; its moments have the parameter's shape.
        if parameter is None or (tensor.dim() > 0 and tensor.shape != parameter.shape):
            raise ValueError(
                f"{path}: {full_name} of shape {tuple(tensor.shape)} matches no parameter; "
                "use a checkpoint of this model"
            )
        if tensor.dtype != parameter.dtype:
            raise ValueError(
                f"{path}: {full_name} is {tensor.dtype} but must be {parameter.dtype}; use another "
                "checkpoint"
            )
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def load_checkpoint(
    checkpoint: Path, model: GPT, optimizer: Optimizer, fingerprint: str
) -> RunPosition:
    """Restore weights and optimizer, and return the position of the run.

    Raises: ValueError if the run used other data than `fingerprint`, or if a file is damaged.
    """
    position = load_position(checkpoint)
    check_same_data(checkpoint, position, fingerprint)
    load_weights(checkpoint, model)
    _load_optimizer(checkpoint / OPTIMIZER_FILE, model, optimizer)
    return position


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointContents:
    """Contents of a checkpoint, in host memory."""

    position: RunPosition
    network: GPTConfig
    tensors: dict[str, Tensor]
    """Weights and optimizer state, named as in `state_tensors`."""
    tokenizer: Tokenizer
    results: dict[str, Any]
    """Step and metrics of the last evaluation."""
    lines: LineDigest = field(default_factory=LineDigest)
    """The digest of all metric lines before it."""

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        found = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        # safetensors writes only contiguous tensors.
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def write_checkpoint(folder: RunFolder, contents: CheckpointContents) -> Path:
    """Write everything that a resume needs, and point `latest` at it; returns the folder.

    Raises: OSError if it cannot be written; earlier checkpoints are unchanged then. FolderLost if
    the folder is no longer this run's; nothing is written there then.
    """
    folder.check()
    path = folder.checkpoint(contents.position.step)
    # A step that is repeated after a resume may have a checkpoint already. A complete one is kept.
    _rename_unusable(folder, path)
    if not path.exists():
        _check_free_space(folder, contents.bytes)
        with new_folder(path, folder.check) as temporary:
            save_weights(temporary, contents.network, contents.under(WEIGHTS))
            (temporary / "tokenizer").mkdir()
            contents.tokenizer.save(temporary / "tokenizer")
            write_tensors(temporary / OPTIMIZER_FILE, contents.under(OPTIMIZER))
            put_json(temporary / RESULTS_FILE, contents.results)
            state = contents.position.as_json()
            put_json(temporary / STATE_FILE, state)
            digest = put_digest(temporary, folder, contents.tensors, state, contents.lines)
            # Last: a folder without a manifest is incomplete. It has digests because no file format
            # detects a flipped bit: 298 of 300 such safetensors files load without an error.
            write_manifest(temporary)
        append_digest(folder, digest)
    turn_latest(folder, path)
    return path


def turn_latest(folder: RunFolder, checkpoint: Path) -> None:
    """Point `latest` at a checkpoint. A failure is logged: the checkpoint is there all the same.

    Raises: FolderLost if the folder is no longer this run's.
    """
    folder.check()
    try:
        point_latest_at(checkpoint)
    except OSError as error:
        log.error(
            "checkpoints/latest cannot name %s (%s); give that name instead of latest, and the "
            "next save or start tries again",
            checkpoint.name,
            error,
        )


def turn_best(folder: RunFolder) -> None:
    """Point `best` at the checkpoint with the smallest validation loss of its own weights.

    Raises: OSError if it cannot be written. FolderLost if the folder is no longer this run's.
    """
    found = [(validation_loss_of(path), path) for path in reversed(folder.all_checkpoints())]
    scored = [(loss, path) for loss, path in found if loss is not None]
    if scored:  # the earliest of equal ones
        folder.check()
        point_best_at(min(scored, key=lambda pair: pair[0])[1])


def _rename_unusable(folder: RunFolder, path: Path) -> None:
    """Rename what has this checkpoint's name but is damaged or another run's, to write it again."""
    if not path.exists():
        return
    if folder.why_foreign(path):
        other = path.rename(free_path(path.with_name(f"{path.name}.other_run")))
        log.warning("%s is another run's checkpoint; moved to %s", path, other)
        return
    try:
        verify_checkpoint(path)
    except ValueError as error:
        log.warning("%s; moved to %s", error, set_aside(path))


def _check_free_space(folder: RunFolder, size: int) -> None:
    """Raises: OSError if `size` bytes are not free."""
    # Checked before writing: on a full disk the metrics and the status would be lost as well.
    # The folder of checkpoints may be a link to another disk.
    disk = folder.checkpoints if folder.checkpoints.is_dir() else folder.path
    free = shutil.disk_usage(disk).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free, {size / 1e9:.2f} GB needed")


def validation_loss_of(checkpoint: Path) -> float | None:
    """The validation loss of exactly these weights; None if it was not measured."""
    try:
        results = read_json(checkpoint / RESULTS_FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict) or results.get("step") != step_of(checkpoint):
        return None
    metrics = results.get("metrics")
    loss: Any = metrics.get("val/loss") if isinstance(metrics, dict) else None
    return float(loss) if is_number(loss) else None
