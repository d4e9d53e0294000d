"""Digests of checkpoints, chained: each names the one before and the lines between them.

`digest.json` of a checkpoint has the digest of its weights and optimizer state (the tensors' bytes,
not the file's), of its position, of all metric lines before it, the settings in force, and the
digest of the checkpoint before. `digests.jsonl` of the run keeps these for checkpoints that are
deleted. Whoever edits a line, a setting or a checkpoint breaks the chain, or must compute all
of it again; train/audit.py finds that by repeating steps.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint import named_weights
from model.gpt import GPT
from storage.atomic import put_json, read_json
from storage.checkpoint_folder import OPTIMIZER_FILE, step_of
from storage.digest import fingerprint
from storage.json_lines import append_line
from storage.records.json_fields import check_fields
from storage.records.line_digest import LineDigest
from storage.records.run_records import flat_settings
from storage.run_folder import RunFolder
from train.checkpoints.config_changes import Change
from train.checkpoints.host_copy import OPTIMIZER, WEIGHTS

_FILE = "digest.json"
_FORMAT = 1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "run_id": str,
    "tensors": str,
    "position": str,
    "began": dict,
    "began.step": int,
    "began.weights": str,
    "lines": str,
    "lines_until": int,
    "settings": dict,
    "previous": str,
    "digest": str,
}
# Of state.json: where the data are is no part of the state, and a branch has an own identity.
_NOT_OF_THE_STATE = ("format", "data", "lines", "run_id", "val_tokens")
_CURE = "audit a copy of the run whose checkpoint is whole"
log = logging.getLogger(__name__)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of all tensors in the order of their names: name, type, shape, then the bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, kind, list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_digest(model: GPT) -> str:
    """The digest of a network's weights alone."""
    return tensors_digest({WEIGHTS + name: tensor for name, tensor in named_weights(model)})


def saved_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of a checkpoint, named as in `state_tensors`.

    Raises: ValueError if a file is damaged.
    """
    found = {}
    for prefix, name in ((WEIGHTS, "model.safetensors"), (OPTIMIZER, OPTIMIZER_FILE)):
        try:
            tensors = load_file(checkpoint / name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{checkpoint / name} cannot be read ({error}); {_CURE}") from error
        found |= {prefix + key: tensor for key, tensor in tensors.items()}
    return found


def position_digest(state: Mapping[str, Any]) -> str:
    """The digest of a position: the content of state.json, as far as it decides what follows."""
    return fingerprint({k: v for k, v in state.items() if k not in _NOT_OF_THE_STATE})


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings in a config.json, those that decide the training, with dotted keys."""
    flat = flat_settings(dict(settings))
    return {k: v for k, v in flat.items() if Change(k, None, None).rule[0] != "free"}


def chain_digest(record: Mapping[str, Any]) -> str:
    """The digest of a record of digests: of everything in it but that digest itself."""
    rest = {k: v for k, v in record.items() if k != "digest"}
    if isinstance(rest.get("settings"), dict):
        rest["settings"] = fingerprint(rest["settings"])
    return fingerprint(rest)


def put_digest(
    temporary: Path,
    folder: RunFolder,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    lines: LineDigest,
) -> dict[str, Any]:
    """Write digest.json into a checkpoint that is being made in `temporary`; returns its content.

    `state` is the content of its state.json.
    """
    record = {
        "format": _FORMAT,
        "step": state["step"],
        "run_id": state["run_id"],
        "tensors": tensors_digest(tensors),
        "position": position_digest(state),
        "began": lines.began,
        "lines": lines.value,
        "lines_until": lines.until,
        "settings": _settings_in_force(folder),
        "previous": _digest_before(folder, state["step"]),
    }
    record["digest"] = chain_digest(record)
    put_json(temporary / _FILE, record)
    return record


def _settings_in_force(folder: RunFolder) -> dict[str, Any]:
    """What the last start recorded; nothing if config.json is lost, which must not cost a save."""
    try:
        return deciding_settings(folder.read_config()["config"])
    except (OSError, ValueError):
        return {}


def _digest_before(folder: RunFolder, step: int) -> str:
    """The digest of the newest checkpoint before `step`; empty if that has none."""
    before = next((path for path in folder.all_checkpoints() if step_of(path) < step), None)
    try:
        record = None if before is None else read_digest(before)
    except ValueError as error:
        log.warning("%s; the chain of digests begins anew", error)
        record = None
    return "" if record is None else record["digest"]


def append_digest(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """Add a record to the run's digests.jsonl. A failure is logged: the checkpoint is there."""
    folder.check()
    try:
        append_line(folder.digests, {**record, "settings": fingerprint(record["settings"])})
    except OSError as error:
        log.error("%s cannot be written (%s); it lacks a line", folder.digests, error)


def read_digest(checkpoint: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's digest.json; None if an older version wrote the checkpoint.

    Raises: ValueError if the file is damaged, or of a newer version.
    """
    path = checkpoint / _FILE
    if not path.is_file():
        return None
    record = check_fields(path, read_json(path), _FIELDS, _CURE)
    if record.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is of format {record.get('format')}, this version reads {_FORMAT}; update "
            "Ratchet"
        )
    return record


def begin_lines(model: GPT, checkpoint: Path | None) -> LineDigest:
    """What the digest of metric lines continues from, at the start of a process.

    A checkpoint without digests, of an older version or damaged, begins a new one.
    """
    record = None
    if checkpoint is not None:
        try:
            record = read_digest(checkpoint)
        except ValueError as error:
            log.warning("%s; the digest of metric lines begins anew", error)
    if record is None:
        return LineDigest.begin(
            0 if checkpoint is None else step_of(checkpoint), model_digest(model)
        )
    return LineDigest(record["began"], record["lines_until"], record["lines"])
