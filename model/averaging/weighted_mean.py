"""The mean of the weights of several checkpoints, and the checkpoint that it becomes."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.averaging.record import AVERAGE_FILE
from model.averaging.selection import Member
from model.checkpoint import save_weights
from storage.atomic import new_folder, put_json
from storage.checkpoint_folder import write_manifest

_FORMAT = 1  # of average.json
# For tools that evaluate it.
_OF_DATA = ("data", "data_fingerprint", "val_tokens", "mask_documents")


def mean_shares(count: int) -> list[float]:
    """The share of each checkpoint in a plain mean."""
    return [1 / count] * count


def ema_shares(count: int, decay: float) -> list[float]:
    """The share of each checkpoint in an exponential moving average, in the order of their steps.

    Each counts `decay` times as much as the next one. The first gets no more than that, unlike in
    an average that starts there.
    """
    weights = [decay ** (count - 1 - n) for n in range(count)]
    return [weight / sum(weights) for weight in weights]


def write_average(
    members: Sequence[Member], shares: Sequence[float], out: Path, how: dict[str, Any]
) -> None:
    """Write the weighted mean as the checkpoint `out`, without what only training needs.

    Sums are in float64 and are rounded once, to float32. Memory is that of one model and one
    tensor, whatever the number of checkpoints.
    Raises: ValueError if weights cannot be read, FileExistsError if `out` exists.
    """
    last = members[-1]
    with new_folder(out) as temporary:
        save_weights(temporary, last.config, dict(_weighted_sums(members, shares)))
        shutil.copytree(last.path / "tokenizer", temporary / "tokenizer")
        record = {"format": _FORMAT, **how, "checkpoints": _origins(members, shares)}
        data = {key: last.state[key] for key in _OF_DATA if key in last.state}
        put_json(temporary / AVERAGE_FILE, record | data)
        write_manifest(temporary)


def _weighted_sums(
    members: Sequence[Member], shares: Sequence[float]
) -> Iterator[tuple[str, Tensor]]:
    for name in _names(members[-1]):
        total = torch.zeros((), dtype=torch.float64)
        for member, share in zip(members, shares, strict=True):
            total = total + share * _tensor(member, name).double()
        yield name, total.float()


def _names(member: Member) -> list[str]:
    with safe_open(_weights(member), framework="pt") as file:
        return list(file.keys())


def _tensor(member: Member, name: str) -> Tensor:
    # Opened for each tensor: a run may have more checkpoints than a process may open files.
    try:
        with safe_open(_weights(member), framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{name} of {member.path} cannot be read ({error}); a run that is training deletes old "
            "checkpoints: name others"
        ) from error


def _weights(member: Member) -> Path:
    return member.path / "model.safetensors"


def _origins(members: Sequence[Member], shares: Sequence[float]) -> list[dict[str, Any]]:
    """What each checkpoint was, in the order of the average."""
    return [
        {
            "step": member.step,
            "run_id": member.state.get("run_id"),
            "weights_sha256": member.weights,
            "share": share,
        }
        for member, share in zip(members, shares, strict=True)
    ]
