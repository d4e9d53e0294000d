"""A model on disk: shape in `model.json`, weights in `model.safetensors`, no pickle."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.config import GPTConfig
from model.estimates.parameters import count_parameters
from model.gpt import GPT
from storage.atomic import put_json, read_json
from storage.ownership.latest import follow_latest

_MODEL_FORMAT = 1
_DTYPE = "F32"  # of every tensor, by its name in safetensors
_POSITIONS = "wpe.weight"
_EXAMPLE = "runs/gpt2/checkpoints/latest"


def save_model(folder: Path, model: GPT) -> None:
    """Write the model's shape and weights into `folder`, which must exist."""
    weights = {name: value.detach().contiguous().cpu() for name, value in named_weights(model)}
    save_weights(folder, model.config, weights)


def save_weights(folder: Path, config: GPTConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write a shape and weights in host memory into `folder`, which must exist."""
    put_json(folder / "model.json", {"format": _MODEL_FORMAT, "config": asdict(config)})
    write_tensors(folder / "model.safetensors", weights)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file with the permissions of the `model.json` beside it."""
    with errors_of_disk(path):
        save_file(tensors, path)  # creates the file for its owner only, whatever the umask
    shutil.copymode(path.parent / "model.json", path)


@contextmanager
def errors_of_disk(path: Path) -> Iterator[None]:
    """Raise what safetensors says of a disk that is full or fails as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def named_weights(model: GPT) -> list[tuple[str, torch.nn.Parameter]]:
    """Every parameter once, by GPT-2's name; a tied head is the embedding."""
    return list(model.named_parameters())


def load_config(folder: Path) -> GPTConfig:
    """The shape of the model in `folder`.

    Raises: ValueError if there is none, or if this version cannot read its format or fields.
    """
    path = follow_latest(folder) / "model.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no model.json; give a checkpoint folder such as {_EXAMPLE}"
        )
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != _MODEL_FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ValueError(
            f"{path} has format {version}, this version reads {_MODEL_FORMAT}; update Ratchet"
        )
    return _config_from(path, found.get("config"))


def _config_from(path: Path, fields: Any) -> GPTConfig:
    try:
        return GPTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a GPT ({error}); it is damaged") from error


def load_weights(folder: Path, model: GPT, cut_context: bool = False) -> None:
    """Copy the weights in `folder` into `model`, name by name.

    `cut_context`: the model may have a shorter position table, which takes the first rows.
    Raises: ValueError naming the first tensor that is missing, unknown or of another shape.
    """
    path = follow_latest(folder) / "model.safetensors"
    own = dict(named_weights(model))
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            rows = len(own[_POSITIONS]) if cut_context and _POSITIONS in own else None
            if rows is not None and _POSITIONS in shapes:
                shapes[_POSITIONS] = (min(rows, shapes[_POSITIONS][0]), *shapes[_POSITIONS][1:])
            # Everything is checked before the first weight of the model is overwritten.
            _check_shapes(path, shapes, {name: tuple(value.shape) for name, value in own.items()})
            _check_types(path, {name: file.get_slice(name).get_dtype() for name in own})
            with torch.no_grad():
                for name, parameter in own.items():
                    cut = rows if name == _POSITIONS else None
                    parameter.copy_(file.get_slice(name)[:cut])
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another checkpoint") from error


def _check_shapes(
    path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: tensor {name} is {found.get(name, 'missing')} but the model wants "
                f"{wanted.get(name, 'no such tensor')}; give the same model shape as the checkpoint"
            )


def _check_types(path: Path, types: dict[str, str]) -> None:
    for name, found in types.items():
        if found != _DTYPE:
            raise ValueError(
                f"{path}: tensor {name} is {found} but must be {_DTYPE}; it is damaged"
            )


def _check_size(path: Path, config: GPTConfig) -> None:
    """Raises: ValueError if the file is too small for such a model, before memory is allocated."""
    needed = 4 * count_parameters(config).total
    if path.is_file() and path.stat().st_size < needed:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, the shape in model.json takes {needed}; one "
            "of them is damaged, use another checkpoint"
        )


def load_model(folder: Path, device: torch.device | str = "cpu") -> GPT:
    """The model in `folder`, in evaluation mode on `device`.

    Raises: ValueError as load_config and load_weights do.
    """
    config = load_config(folder)
    _check_size(follow_latest(folder) / "model.safetensors", config)
    model = GPT(config)
    load_weights(folder, model)
    return model.to(device).eval()
