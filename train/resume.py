"""A run that can be continued: optimizer state, data position and results beside the weights.

A checkpoint is written aside, digested file by file and renamed: it exists whole or not at all.
Everything random derives from (seed, step, sample), so there is no random state to save.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer

from data_prep.tokenizer import Tokenizer
from model.checkpoint import load_weights, named_weights, save_model, write_tensors
from model.gpt import GPT
from storage.atomic import new_folder, read_json, write_json
from storage.run_folder import RunFolder, write_manifest

FORMAT = 1
# A change of these never alters which tokens a step sees or what the optimizer does with them.
FREE_KEYS = (
    "data",
    "data_check",
    "stage",
    "out",
    "micro_batch",
    "compile",
    "device",
    "eval",
    "sample",
    "save",
)


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


def save_checkpoint(
    folder: RunFolder,
    position: Position,
    model: GPT,
    optimizer: Optimizer,
    tokenizer: Tokenizer,
    results: dict[str, Any],
) -> Path:
    """Write everything a run needs to go on, and point `latest` at it; one rank calls this."""
    path = folder.checkpoint(position.step)
    if not path.exists():  # the same step of the same run holds the same state
        with new_folder(path) as aside:
            save_model(aside, model)
            (aside / "tokenizer").mkdir()
            tokenizer.save(aside / "tokenizer")
            write_tensors(aside / "optimizer.safetensors", optimizer_tensors(model, optimizer))
            write_json(aside / "results.json", results)
            write_json(aside / "state.json", {"format": FORMAT, **asdict(position)})
            write_manifest(aside)
    folder.point_latest_at(path)
    return path


def optimizer_tensors(model: GPT, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<state>.<parameter name>`, on the host."""
    tensors = {}
    for name, parameter in named_weights(model):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
    return tensors


def load_optimizer(path: Path, model: GPT, optimizer: Optimizer) -> None:
    """Restore what `optimizer_tensors` gave.

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
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def load_position(checkpoint: Path) -> Position:
    """Where the run stood at this checkpoint.

    Raises: ValueError if its format is not this version's.
    """
    path = checkpoint / "state.json"
    found = read_json(path)
    if found.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} is not of format {FORMAT}, which this version reads; update Ratchet"
        )
    return Position(**found)


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


def check_same_run(folder: RunFolder, config: dict[str, Any]) -> None:
    """Refuse a folder that holds another run, or something else.

    Raises: ValueError listing every difference that matters.
    """
    if not folder.path.exists():
        return
    if not folder.config.is_file():
        foreign = [p.name for p in folder.path.iterdir() if p.name != "lock"]
        if foreign:
            raise ValueError(
                f"--out {folder.path} holds {foreign[0]} but no run; choose another --out"
            )
        return
    before = flatten(read_json(folder.config)["config"])
    now = flatten(config)
    changed = [
        f"{key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] not in FREE_KEYS
    ]
    if changed:
        raise ValueError(
            f"--out {folder.path} holds a run with another configuration ({'; '.join(changed)}); "
            "give the same values to continue it, or choose another --out"
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check_space(folder: Path, parameters: int, checkpoints: int) -> None:
    """Refuse to start a run whose checkpoints would not fit on the disk.

    Raises: ValueError with the space needed and free.
    """
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    needed = 12 * parameters * (checkpoints + 1)  # float32 weights and two moments each
    if free < needed:
        raise ValueError(
            f"{existing} has {free / 1e9:.1f} GB free, {checkpoints} checkpoints and one in the "
            f"making take {needed / 1e9:.1f} GB; free some space or choose another --out"
        )
