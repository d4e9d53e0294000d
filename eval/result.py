"""The result of a task: numbers by tag, and per-item results if it has items.

A table of items is saved as one .npz file per task; eval/compare.py reads it back.
"""

import json
import math
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import new_file

_PREDICTION = "prediction_"  # + the last part of a tag: an array's name in the .npz file
_ID_BYTES = 8
_MAX_NATS = math.log(sys.float_info.max)  # e to this is the largest float


@dataclass(frozen=True)
class ItemTable:
    """Results of the items of one task, in the order of the items."""

    ids: np.ndarray
    """Digests of the items' text. Shape (items,)."""
    labels: np.ndarray
    """Indices of the right choices; 0 if the task has no choices. Shape (items,)."""
    losses: np.ndarray
    """Loss of every choice in nats; inf if an item has fewer choices. Shape (items, choices)."""
    lengths: np.ndarray
    """What the task divides a loss by (tokens, characters or words), or 1. Shape as `losses`."""
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    """Indices of the chosen answers, by the last part of the tag: acc_norm. Shapes (items,)."""

    def save(self, path: Path, task: str) -> None:
        """Write the table as .npz, atomically."""
        arrays: dict[str, Any] = {
            "task": np.array(task),
            "ids": self.ids,
            "labels": self.labels,
            "losses": self.losses,
            "lengths": self.lengths,
        }
        arrays |= {_PREDICTION + name: chosen for name, chosen in self.predictions.items()}
        with new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


@dataclass(frozen=True)
class TaskResult:
    """The results of one task, or of several."""

    tags: dict[str, float]
    """Numbers by tag, such as hellaswag/acc."""
    items: dict[str, ItemTable] = field(default_factory=dict)
    """Tables of items, by the first part of their tags."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a task has no result, by its name."""

    def save_items(self, folder: Path) -> None:
        """Write each table into `folder` as NAME.npz."""
        for name, table in self.items.items():
            table.save(folder / f"{name}.npz", name)


def load_items(path: Path) -> ItemTable:
    """Read a table that `ItemTable.save` wrote. Raises: ValueError if the file is not one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
        chosen = {k.removeprefix(_PREDICTION): v for k, v in arrays.items() if _PREDICTION in k}
        names = ("ids", "labels", "losses", "lengths")
        return ItemTable(*(arrays[name] for name in names), predictions=chosen)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no results of items ({error}); write some with eval/main.py --items-out"
        ) from error


def item_ids(values: Sequence[Any]) -> np.ndarray:
    """A digest of each value. A repeated value gets a number, so that all ids differ."""
    seen: dict[str, int] = {}
    ids = []
    for value in values:
        text = json.dumps(value, ensure_ascii=True)
        digest = blake2b(text.encode(), digest_size=_ID_BYTES).hexdigest()
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}#{seen[digest]}")
    return np.array(ids)


def perplexity(nats: float) -> float:
    """e to the power of `nats`; inf if that is too large for a float (diverged weights)."""
    return math.inf if nats >= _MAX_NATS else math.exp(nats)


def accuracy_tags(tag: str, right: np.ndarray) -> dict[str, float]:
    """Accuracy and its standard error. Shape of `right`: (items,) bool."""
    accuracy, count = float(right.mean()), len(right)
    tags = {tag: accuracy}
    if count > 1:  # the standard error of one item is undefined
        # The sample standard error, as lm-evaluation-harness reports it.
        tags[f"{tag}_stderr"] = math.sqrt(accuracy * (1 - accuracy) / (count - 1))
    return tags
