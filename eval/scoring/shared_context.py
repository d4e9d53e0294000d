"""The loss of endings given their context, one row of the model for a context and all its endings.

Trees of token ids go in, one loss per branch comes out. A row holds the context once and then its
branches; a mask keeps them from seeing each other, and each counts its positions from the context.
Only the positions that predict a branch go through the output layer.
Shape letters: R rows of a batch, L padded length, N branch tokens in it, C width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.scoring.batches import MemoryLimit, head_chunks, split_over_ranks
from eval.subject import EvalOptions, Subject, evaluating
from model.precision import autocast, choose_dtype

LENGTH_MULTIPLE = 16  # rows are padded to a multiple of it, so that few shapes occur
COLUMNS = 2  # nats of a branch, and how many of its tokens were not the likeliest


@dataclass(frozen=True)
class SharedContext:
    """A context and its branches, each of which is scored as if it alone followed."""

    context: Sequence[int]
    continuations: tuple[Sequence[int], ...]

    @property
    def length(self) -> int:
        """Tokens that the model reads: a branch's last one is only a target."""
        return len(self.context) + sum(len(branch) - 1 for branch in self.continuations)


@dataclass(frozen=True)
class Batch:
    """Trees scored in one forward pass of a fixed shape."""

    trees: list[int]
    shape: tuple[int, int]
    """Rows and tokens of the pass (R, L); what the trees leave empty is padding."""

    @property
    def rows(self) -> int:
        """Rows of the pass (R)."""
        return self.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of the pass, padding included."""
        return self.shape[0] * self.shape[1]

    def halves(self) -> list["Batch"]:
        """The same trees in two passes."""
        half = len(self.trees) // 2
        parts = (self.trees[:half], self.trees[half:])
        return [Batch(part, (len(part), self.shape[1])) for part in parts]


def truncated_contexts(
    context: Sequence[int], continuations: tuple[Sequence[int], ...], context_length: int
) -> tuple[list[SharedContext], int]:
    """The tree of a context and branches, and how many branches lost the context's beginning.

    Where a branch does not fit, each gets a tree of its own with as much context as it leaves
    room for: lm-evaluation-harness's rule.
    """
    rooms = [context_length + 1 - len(branch) for branch in continuations]
    if min(rooms) >= len(context):
        return [SharedContext(context, continuations)], 0
    trees = [SharedContext(context[-r:], (b,)) for r, b in zip(rooms, continuations, strict=True)]
    return trees, sum(room < len(context) for room in rooms)


def make_batches(lengths: Sequence[int], capacity: int) -> list[Batch]:
    """Rows sorted by length, the longest first, in batches of `capacity` tokens.

    The shape of a batch follows from its longest row, so the shapes are as few as the lengths
    divided by LENGTH_MULTIPLE, and what follows a length change fills the batch before it.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        padded = -(-lengths[order[start]] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        count = max(1, capacity // padded)
        rows = order[start : start + count]
        batches.append(Batch(rows, (len(rows), padded)))
        start += count
    return batches


def score_contexts(
    subject: Subject, trees: Sequence[SharedContext], options: EvalOptions
) -> np.ndarray:
    """For every branch of every tree its nats and its tokens that were not the likeliest.

    The same for any number of ranks. After running out of memory, batches are halved.
    Shapes: (branches, COLUMNS) float64. Raises: ValueError if one row alone is too much.
    """
    capacity = options.batch_tokens_on(subject.ranks.device)
    batches = make_batches([tree.length for tree in trees], capacity)
    ends = list(accumulate(len(tree.continuations) for tree in trees))
    dtype = choose_dtype(options.dtype, subject.ranks.device)
    limit = MemoryLimit(subject.ranks.device)

    def score(batch: Batch) -> Tensor:
        return _score_batch(subject, [trees[i] for i in batch.trees], batch.shape, dtype)

    def score_parts(batch: Batch) -> tuple[list[int], Tensor]:
        parts = limit.run(batch, score)
        order = [i for part, _ in parts for i in part.trees]
        rows = [row for i in order for row in range(ends[i] - len(trees[i].continuations), ends[i])]
        return rows, torch.cat([found for _, found in parts])

    with evaluating(subject.model):
        return split_over_ranks(
            batches, score_parts, ends[-1] if ends else 0, COLUMNS, subject.ranks
        )


@dataclass
class _Pass:
    """What one forward pass reads and predicts, on the host."""

    ids: np.ndarray
    """Shape (R, L)."""
    positions: np.ndarray
    """Of each token in its context and branch. Shape (R, L)."""
    branch: np.ndarray
    """0 in the context, -1 in padding, otherwise the branch counted from 1. Shape (R, L)."""
    places: np.ndarray
    """Flat positions that predict a branch token. Shape (N,)."""
    wanted: np.ndarray
    """The tokens to predict there. Shape (N,)."""
    owners: np.ndarray
    """Which branch of the pass each is of. Shape (N,)."""


def _lay_out(trees: list[SharedContext], shape: tuple[int, int]) -> _Pass:
    R, L = shape
    ids, positions = np.zeros((2, R, L), np.int64)
    branch = np.full((R, L), -1, np.int16)
    places, wanted, owners = [], [], []
    owner = 0
    for r, tree in enumerate(trees):
        end = len(tree.context)
        ids[r, :end], positions[r, :end], branch[r, :end] = tree.context, np.arange(end), 0
        for number, tokens in enumerate(tree.continuations, start=1):
            start, end = end, end + len(tokens) - 1
            ids[r, start:end], branch[r, start:end] = tokens[:-1], number
            positions[r, start:end] = len(tree.context) + np.arange(end - start)
            places += [r * L + len(tree.context) - 1, *range(r * L + start, r * L + end)]
            wanted += tokens
            owners += [owner] * len(tokens)
            owner += 1
    return _Pass(ids, positions, branch, np.array(places), np.array(wanted), np.array(owners))


def _score_batch(
    subject: Subject, trees: list[SharedContext], shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Nats and unlikely tokens of each branch, in order. Shape (branches, COLUMNS) float64."""
    device = subject.ranks.device
    laid = _lay_out(trees, shape)
    mask = None
    if any(len(tree.continuations) > 1 for tree in trees):
        mask = _attention_mask(torch.from_numpy(laid.branch).to(device))
    # Without branches attention is causal: what is behind a row is never seen by it.
    nats, unlikely = [], []
    with autocast(dtype, device):
        ids, positions = (torch.from_numpy(a).to(device) for a in (laid.ids, laid.positions))
        states = subject.model.hidden(ids, positions, mask).flatten(0, 1)  # (R * L, C)
        places, wanted = (torch.from_numpy(a).to(device) for a in (laid.places, laid.wanted))
        vocabulary = subject.model.config.padded_vocab_size
        for some, targets in head_chunks(states[places], wanted, vocabulary):
            logits = subject.model.masked_logits(some)  # (N, C) -> (N, V)
            nats.append(F.cross_entropy(logits, targets, reduction="none"))
            unlikely.append(logits.argmax(-1) != targets)
    by_token = torch.stack((torch.cat(nats).double(), torch.cat(unlikely).double()), dim=1)
    return _sum_by_owner(by_token, laid.owners)


def _attention_mask(branch: Tensor) -> Tensor:
    """Who attends to whom: earlier tokens of the context or of one's own branch.

    Shapes: (R, L) -> (R, 1, L, L).
    """
    L = branch.size(1)
    causal = torch.ones(L, L, dtype=torch.bool, device=branch.device).tril()
    keys, queries = branch[:, None, None, :], branch[:, None, :, None]
    return causal & ((keys == 0) | (keys == queries))


def _sum_by_owner(values: Tensor, owners: np.ndarray) -> Tensor:
    """Sums of consecutive rows with one owner, in a fixed order. (N, columns) -> (owners, ...)."""
    lengths = np.bincount(owners)
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(owners)) - starts[owners]
    longest = int(lengths.max())
    # A scatter and a sum: adding by index would add in an order of its own on a GPU.
    where = torch.from_numpy(owners * longest + within).to(values.device)
    table = values.new_zeros(len(lengths) * longest, values.size(1))
    table[where] = values
    return table.view(len(lengths), longest, -1).sum(1)
