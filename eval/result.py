"""What a task gives: numbers by tag and, where it has items, what became of each.

A table of items is saved as .npz beside others of its evaluation; eval/compare.py reads it back.
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

PREDICTION = "prediction_"  # before the tag's last part, in the names of the arrays of a file
ID_BYTES = 8
MAX_NATS = math.log(sys.float_info.max)


@dataclass(frozen=True)
class ItemTable:
    """The items of one task, in their order."""

    ids: np.ndarray
    """Digests of the items' text. Shape (items,)."""
    labels: np.ndarray
    """Right answers; 0 where there are no choices. Shape (items,)."""
    losses: np.ndarray
    """Nats of every choice; inf where an item has fewer. Shape (items, choices)."""
    lengths: np.ndarray
    """What a loss is divided by: tokens, characters or words, as the task says; 1 if nothing."""
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    """Chosen answers by the last part of the tag, such as acc_norm. Shapes (items,)."""

    def save(self, path: Path, task: str) -> None:
        """Write the table as .npz, whole or not at all."""
        arrays: dict[str, Any] = {
            "task": np.array(task),
            "ids": self.ids,
            "labels": self.labels,
            "losses": self.losses,
            "lengths": self.lengths,
        }
        arrays |= {PREDICTION + name: chosen for name, chosen in self.predictions.items()}
        with new_file(path) as aside, aside.open("wb") as file:
            np.savez(file, **arrays)


@dataclass(frozen=True)
class TaskResult:
    """What one task measured."""

    tags: dict[str, float]
    """Numbers by tag, such as hellaswag/acc."""
    items: dict[str, ItemTable] = field(default_factory=dict)
    """Tables of items by the first part of their tags."""

    def save_items(self, folder: Path) -> None:
        """Write every table into `folder`, by its name."""
        for name, table in self.items.items():
            table.save(folder / f"{name}.npz", name)


def load_items(path: Path) -> ItemTable:
    """The table that `ItemTable.save` wrote. Raises: ValueError if the file is none."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
        chosen = {k.removeprefix(PREDICTION): v for k, v in arrays.items() if PREDICTION in k}
        names = ("ids", "labels", "losses", "lengths")
        return ItemTable(*(arrays[name] for name in names), predictions=chosen)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no results of items ({error}); write some with eval/main.py --items-out"
        ) from error


def item_ids(values: Sequence[Any]) -> np.ndarray:
    """A digest of each value; a repeated one gets a number, so that all differ."""
    seen: dict[str, int] = {}
    ids = []
    for value in values:
        text = json.dumps(value, ensure_ascii=True)
        digest = blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()
        seen[digest] = seen.get(digest, 0) + 1
        ids.append(digest if seen[digest] == 1 else f"{digest}#{seen[digest]}")
    return np.array(ids)


def perplexity(nats: float) -> float:
    """e to the `nats`; infinite where a float cannot hold it, as for weights that have diverged."""
    return math.inf if nats >= MAX_NATS else math.exp(nats)


def accuracy_tags(tag: str, right: np.ndarray) -> dict[str, float]:
    """The share of right answers and its standard error. Shape of `right`: (items,) bool."""
    accuracy, count = float(right.mean()), len(right)
    tags = {tag: accuracy}
    if count > 1:  # one item has no spread
        # The sample standard error, as lm-evaluation-harness reports it.
        tags[f"{tag}_stderr"] = math.sqrt(accuracy * (1 - accuracy) / (count - 1))
    return tags
