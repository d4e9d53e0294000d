"""Losses of several continuations of one context, in one row of the model's input.

Token ids go in (`SharedContext`), one loss per continuation comes out. A row holds the context
once and then all continuations. An attention mask keeps them from seeing each other, and each one
counts its positions from the end of the context. The output layer runs only at the positions that
predict a token of a continuation. On a CPU this was 2.2 times as fast as one item at a time with
a row per ending (bench/LOG.md, "scoring HellaSwag").
Shape letters: R rows of a batch, L padded length, N predicted tokens, C width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.scoring.batches import MemoryLimit, head_chunks, on_device, split_over_ranks
from eval.subject import EvalOptions, Subject, evaluating
from model.precision import autocast, choose_dtype

LENGTH_MULTIPLE = 16  # rows are padded to a multiple of this, so that few shapes occur
COLUMNS = 2  # of a continuation: its nats, and how many of its tokens greedy decoding would miss


@dataclass(frozen=True)
class SharedContext:
    """A context and its continuations. Each is scored as if it were the only one."""

    context: Sequence[int]
    continuations: tuple[Sequence[int], ...]

    @property
    def length(self) -> int:
        """Tokens that the model reads; the last one of a continuation is only a target."""
        return len(self.context) + sum(len(tokens) - 1 for tokens in self.continuations)


@dataclass(frozen=True)
class _ContextBatch:
    """Contexts scored in one forward pass, one per row."""

    contexts: list[int]
    """Their indices."""
    shape: tuple[int, int]
    """Rows and tokens per row (R, L), including padding."""

    @property
    def rows(self) -> int:
        """Rows of the forward pass (R)."""
        return self.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens of the forward pass, including padding."""
        return self.shape[0] * self.shape[1]

    def halves(self) -> list["_ContextBatch"]:
        """The same contexts as two batches."""
        half = len(self.contexts) // 2
        parts = (self.contexts[:half], self.contexts[half:])
        return [_ContextBatch(part, (len(part), self.shape[1])) for part in parts]


def truncated_contexts(
    context: Sequence[int], continuations: tuple[Sequence[int], ...], context_length: int
) -> tuple[list[SharedContext], int]:
    """One SharedContext that fits the model, and how many continuations lost part of the context.

    If a continuation does not fit behind the whole context, each gets a SharedContext of its own
    with the last tokens of the context that fit before it: lm-evaluation-harness's rule.
    """
    rooms = [context_length + 1 - len(tokens) for tokens in continuations]
    if min(rooms) >= len(context):
        return [SharedContext(context, continuations)], 0
    alone = [
        SharedContext(context[-room:], (tokens,))
        for room, tokens in zip(rooms, continuations, strict=True)
    ]
    return alone, sum(room < len(context) for room in rooms)


def make_batches(lengths: Sequence[int], capacity: int) -> list[_ContextBatch]:
    """Sort rows by length, longest first, and cut them into batches of at most `capacity` tokens.

    A batch is padded to its longest row. Sorting keeps both padding and the number of different
    shapes small.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches, start = [], 0
    while start < len(order):
        padded = -(-lengths[order[start]] // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        count = max(1, capacity // padded)
        rows = order[start : start + count]
        batches.append(_ContextBatch(rows, (len(rows), padded)))
        start += count
    return batches


def score_contexts(
    subject: Subject, contexts: Sequence[SharedContext], options: EvalOptions
) -> np.ndarray:
    """For every continuation: its nats, and how many of its tokens greedy decoding would miss.

    The same for any number of ranks. If memory runs out, batches are halved.
    Shapes: (continuations, COLUMNS) float64, in order. Raises: ValueError if one row does not fit
    in memory.
    """
    capacity = options.batch_tokens_on(subject.ranks.device)
    batches = make_batches([context.length for context in contexts], capacity)
    # Continuations are numbered over all contexts; those of context i end before ends[i].
    ends = list(accumulate(len(context.continuations) for context in contexts))
    dtype = choose_dtype(options.dtype, subject.ranks.device)
    limit = MemoryLimit(subject.ranks.device)

    def score(batch: _ContextBatch) -> Tensor:
        return _score_batch(subject, [contexts[i] for i in batch.contexts], batch.shape, dtype)

    def score_parts(batch: _ContextBatch) -> tuple[list[int], Tensor]:
        parts = limit.run(batch, score)
        order = [i for part, _ in parts for i in part.contexts]
        rows = [
            row for i in order for row in range(ends[i] - len(contexts[i].continuations), ends[i])
        ]
        return rows, torch.cat([values for _, values in parts])

    with evaluating(subject.model):
        return split_over_ranks(
            batches, score_parts, ends[-1] if ends else 0, COLUMNS, subject.ranks
        )


@dataclass
class _PackedBatch:
    """The input and targets of one forward pass, as arrays on the host."""

    ids: np.ndarray
    """Shape (R, L)."""
    positions: np.ndarray
    """Of each token within its context and continuation. Shape (R, L)."""
    segment: np.ndarray
    """0: context, -1: padding, otherwise the continuation, counted from 1. Shape (R, L)."""
    predicting: np.ndarray
    """Flat indices of the tokens that predict a token of a continuation. Shape (N,)."""
    targets: np.ndarray
    """The tokens to predict there. Shape (N,)."""
    owners: np.ndarray
    """The continuation that each target belongs to, counted over the batch. Shape (N,)."""


def _pack(contexts: list[SharedContext], shape: tuple[int, int]) -> _PackedBatch:
    R, L = shape
    ids, positions = np.zeros((2, R, L), np.int64)
    segment = np.full((R, L), -1, np.int16)
    predicting, targets, owners = [], [], []
    owner = 0
    for r, shared in enumerate(contexts):
        end = length = len(shared.context)
        ids[r, :end], positions[r, :end], segment[r, :end] = shared.context, np.arange(end), 0
        for number, tokens in enumerate(shared.continuations, start=1):
            start, end = end, end + len(tokens) - 1
            ids[r, start:end], segment[r, start:end] = tokens[:-1], number
            positions[r, start:end] = length + np.arange(end - start)
            # The last token of the context predicts the first token of every continuation.
            predicting += [r * L + length - 1, *range(r * L + start, r * L + end)]
            targets += tokens
            owners += [owner] * len(tokens)
            owner += 1
    arrays = (np.array(predicting), np.array(targets), np.array(owners))
    return _PackedBatch(ids, positions, segment, *arrays)


def _score_batch(
    subject: Subject, contexts: list[SharedContext], shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The values of `score_contexts` for one batch. Shape (continuations, COLUMNS) float64."""
    device = subject.ranks.device
    packed = _pack(contexts, shape)
    # With one continuation per row, causal attention is enough: padding comes after the row's
    # tokens, and no token sees later ones.
    mask = None
    if any(len(context.continuations) > 1 for context in contexts):
        mask = _attention_mask(on_device(packed.segment, device))
    nats, missed = [], []
    with autocast(dtype, device):
        ids, positions = (on_device(a, device) for a in (packed.ids, packed.positions))
        states = subject.model.hidden(ids, positions, mask).flatten(0, 1)  # (R * L, C)
        predicting = on_device(packed.predicting, device)
        targets = on_device(packed.targets, device)
        vocabulary = subject.model.config.padded_vocab_size
        for chunk, wanted in head_chunks(states[predicting], targets, vocabulary):
            logits = subject.model.masked_logits(chunk)  # (N, C) -> (N, V)
            nats.append(F.cross_entropy(logits, wanted, reduction="none"))
            missed.append(logits.argmax(-1) != wanted)
    by_token = torch.stack((torch.cat(nats).double(), torch.cat(missed).double()), dim=1)
    return _sum_by_owner(by_token, packed.owners)


def _attention_mask(segment: Tensor) -> Tensor:
    """A token attends to earlier tokens of the context and of its own continuation.

    Shapes: (R, L) -> (R, 1, L, L).
    """
    L = segment.size(1)
    causal = torch.ones(L, L, dtype=torch.bool, device=segment.device).tril()
    keys, queries = segment[:, None, None, :], segment[:, None, :, None]
    return causal & ((keys == 0) | (keys == queries))


def _sum_by_owner(values: Tensor, owners: np.ndarray) -> Tensor:
    """Sum consecutive rows with the same owner. Shapes: (N, columns) -> (owners, columns)."""
    lengths = np.bincount(owners)
    starts = np.cumsum(lengths) - lengths
    within = np.arange(len(owners)) - starts[owners]
    longest = int(lengths.max())
    # `index_add_` adds in an undefined order on a GPU, so its bits change from call to call.
    # https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    places = on_device(owners * longest + within, values.device)
    table = values.new_zeros(len(lengths) * longest, values.size(1))
    table[places] = values
    return table.view(len(lengths), longest, -1).sum(1)
