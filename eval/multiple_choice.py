"""Multiple choice by completion: each ending's loss given its context, many rows at a time.

Items go in, a table of losses comes out. A row is a context and one of its endings; only the
positions that predict the ending go through the output layer.
Shape letters: R rows of a batch, L padded length, N ending tokens in it, C width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.dealing import deal
from eval.subject import EvalOptions, Subject, evaluating
from model.precision import autocast, choose_dtype

LENGTH_MULTIPLE = 16  # rows are padded to a multiple of it, so that few shapes occur


@dataclass(frozen=True)
class Item:
    """One question."""

    context: str
    endings: tuple[str, ...]
    label: int
    """Which ending is right, from 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.label < len(self.endings):
            raise ValueError(
                f"label {self.label} is not one of {len(self.endings)} endings; count from 0"
            )


@dataclass(frozen=True)
class Scores:
    """The loss of every ending of every item, in item order."""

    labels: np.ndarray
    """Right endings. Shape (items,)."""
    sums: np.ndarray
    """Nats of the ending's tokens; inf where an item has fewer endings. Shape (items, endings)."""
    tokens: np.ndarray
    """Tokens of each ending; 1 where an item has fewer endings. Shape (items, endings)."""
    truncated_rows: int
    """Rows whose context lost its beginning because it did not fit the model."""

    @property
    def means(self) -> np.ndarray:
        """Nats per token of each ending. Shape (items, endings)."""
        return self.sums / self.tokens

    def accuracy_tags(self, task: str) -> dict[str, float]:
        """`acc` by smallest sum, `acc_norm` by smallest mean, each with its standard error."""
        tags = {}
        for tag, losses in (("acc", self.sums), ("acc_norm", self.means)):
            right = losses.argmin(axis=1) == self.labels
            accuracy, count = float(right.mean()), len(right)
            tags[f"{task}/{tag}"] = accuracy
            if count > 1:  # one item has no spread
                # The sample standard error, as lm-evaluation-harness reports it.
                tags[f"{task}/{tag}_stderr"] = math.sqrt(accuracy * (1 - accuracy) / (count - 1))
        if self.truncated_rows:
            tags[f"{task}/truncated_rows"] = float(self.truncated_rows)
        return tags


@dataclass(frozen=True)
class Row:
    """One ending behind its context, ready for the model."""

    ids: list[int]
    ending_tokens: int

    @property
    def length(self) -> int:
        """Tokens that the model reads: all but the last, which is only a target."""
        return len(self.ids) - 1


def score_items(subject: Subject, items: Sequence[Item], options: EvalOptions) -> Scores:
    """The losses of all endings; the same for any number of ranks.

    Raises: ValueError naming the item if an ending has no tokens or cannot fit the model, or if a
    loss is not a number.
    """
    if not items:
        raise ValueError("there are no items to score; give a file that holds some")
    rows, truncated_rows = _rows_of(subject, items)
    capacity = options.batch_tokens_on(subject.ranks.device)
    batches = _batches_of([row.length for row in rows], capacity)
    dtype = choose_dtype(options.dtype, subject.ranks.device)

    def score(batch: "Batch") -> tuple[list[int], Tensor]:
        losses = _score_batch(subject, [rows[i] for i in batch.rows], batch, dtype)
        return batch.rows, losses[: len(batch.rows), None]

    with evaluating(subject.model):
        sums = deal(batches, score, len(rows), 1, subject.ranks)[:, 0]
    return _table_of(items, rows, sums, truncated_rows)


def _rows_of(subject: Subject, items: Sequence[Item]) -> tuple[list[Row], int]:
    """A row for every ending, in item order, and how many were truncated."""
    most = subject.model.config.context_length + 1
    rows, truncated_rows = [], 0
    for number, item in enumerate(items):
        # A model always has something to condition on: a new document, if there is no context.
        context = subject.tokenizer.encode(item.context) or [subject.tokenizer.end_of_text]
        for choice, text in enumerate(item.endings):
            ending = subject.tokenizer.encode(" " + text) if text.strip() else []
            if not 0 < len(ending) < most:
                raise ValueError(
                    f"ending {choice} of item {number} has {len(ending)} tokens, but it must have "
                    f"1 to {most - 1} (the model's context_length); leave the item out"
                )
            ids = context + ending
            truncated_rows += len(ids) > most
            rows.append(Row(ids[-most:], len(ending)))
    return rows, truncated_rows


@dataclass(frozen=True)
class Batch:
    """Rows scored in one forward pass of a fixed shape."""

    rows: list[int]
    shape: tuple[int, int]
    """Rows and tokens of the pass (R, L); what the rows leave empty is padding."""


def _batches_of(lengths: Sequence[int], capacity: int) -> list[Batch]:
    """Rows sorted by length, the longest first, in batches of `capacity` tokens.

    The shape of a batch follows from its longest row, so the shapes are as few as the lengths
    divided by LENGTH_MULTIPLE, and what follows a length change fills the batch before it.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        padded = -(-lengths[order[start]] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        count = max(1, capacity // padded)
        batches.append(Batch(order[start : start + count], (count, padded)))
        start += count
    return batches


def _score_batch(subject: Subject, rows: list[Row], batch: Batch, dtype: torch.dtype) -> Tensor:
    """Summed loss of each row's ending; zero for rows of padding. Shape (R,) float64."""
    R, L = batch.shape
    L = min(L, subject.model.config.context_length)
    ids, targets = np.zeros((2, R, L), np.int64)
    ending = np.zeros((R, L), bool)
    for r, row in enumerate(rows):
        ids[r, : row.length] = row.ids[:-1]
        targets[r, : row.length] = row.ids[1:]
        ending[r, row.length - row.ending_tokens : row.length] = True
    device = subject.ranks.device
    # Attention is causal, so the padding behind a row is never seen by it and needs no mask.
    with autocast(dtype, device):
        hidden = subject.model.hidden(torch.from_numpy(ids).to(device))  # (R, L) -> (R, L, C)
        places = torch.from_numpy(np.flatnonzero(ending)).to(device)  # (N,)
        logits = subject.model.live_logits(hidden.flatten(0, 1)[places])  # (N, C) -> (N, V)
    wanted = torch.from_numpy(targets[ending]).to(device)
    losses = torch.zeros(R * L, dtype=torch.float64, device=device)
    losses[places] = F.cross_entropy(logits, wanted, reduction="none").double()
    return losses.view(R, L).sum(1)


def _table_of(
    items: Sequence[Item], rows: list[Row], row_sums: np.ndarray, truncated_rows: int
) -> Scores:
    counts = np.array([len(item.endings) for item in items])
    filled = np.arange(counts.max()) < counts[:, None]  # (items, endings)
    sums, tokens = np.full(filled.shape, np.inf), np.ones(filled.shape, np.int64)
    sums[filled] = row_sums
    tokens[filled] = [row.ending_tokens for row in rows]
    owners = list(chain.from_iterable([i] * count for i, count in enumerate(counts)))
    broken = np.flatnonzero(~np.isfinite(row_sums))
    if len(broken):
        raise ValueError(
            f"the loss of item {owners[broken[0]]} is {row_sums[broken[0]]}, like that of "
            f"{len(broken)} of {len(rows)} endings; the weights are damaged or have diverged"
        )
    labels = np.array([item.label for item in items])
    return Scores(labels, sums, tokens, truncated_rows)
