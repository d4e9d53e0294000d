"""Validation loss and bits per byte over a fixed number of windows of the validation split.

`val/`: as in training, whose softmax includes the padding rows of the embedding. `val_unpadded/`:
over the real ids only, as the other tasks, and transformers on an export, compute it.
Window `w` is tokens [wT, wT + T] in file order. A model that was trained with `--mask-documents`
reads each document in it alone, here too. The result has the same bits for any number of
ranks (on the CPU).
Shape letters: B windows of a micro-batch, T tokens, C model width, V padded vocabulary.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data_prep.dataset.shards import TokenShards
from eval.scoring.batches import MemoryLimit, head_chunks, on_device, split_over_ranks
from eval.subject import Subject, evaluating
from model.precision import autocast
from storage.option_values import AtMost

log = logging.getLogger(__name__)

_COLUMNS = 3  # nats of all targets; nats and bytes of the targets that are not end-of-text


@dataclass(frozen=True)
class _WindowBatch:
    """Consecutive windows scored in one forward pass, starting with window `first`."""

    first: int
    rows: int
    length: int
    """Tokens per window (T)."""

    @property
    def tokens(self) -> int:
        """Tokens of the forward pass."""
        return self.rows * self.length

    def halves(self) -> tuple["_WindowBatch", "_WindowBatch"]:
        """The same windows as two batches."""
        half = self.rows // 2
        rest = _WindowBatch(self.first + half, self.rows - half, self.length)
        return _WindowBatch(self.first, half, self.length), rest


def validation_tokens(
    shards: TokenShards, wanted: int, context_length: int, option: str = "--val-tokens"
) -> int:
    """The number of validation tokens to use: `wanted`, or all whole windows if it is an AtMost.

    `option` is the flag that sets it, for the error.
    Raises: ValueError if that is less than one window or more than the split holds.
    """
    windows = wanted // context_length
    available = max(shards.tokens - 1, 0) // context_length
    if available < 1:
        raise ValueError(
            f"the {shards.tokens} validation tokens hold no window of context_length="
            f"{context_length}; prepare the data again with more (--val-tokens of the script in "
            "data_prep/)"
        )
    if isinstance(wanted, AtMost):
        whole = min(max(windows, 1), available) * context_length
        return whole if windows > available or windows < 1 else int(wanted)
    if windows < 1:
        raise ValueError(
            f"val_tokens={wanted} is less than one window of context_length={context_length}; "
            f"give {option} {context_length} or more"
        )
    if windows > available:
        raise ValueError(
            f"val_tokens={wanted} is {windows} windows of context_length={context_length}, but the "
            f"{shards.tokens} validation tokens hold only {available}; give {option} "
            f"{available * context_length} or less, or prepare the data again with more validation "
            "tokens (--val-tokens of the script in data_prep/)"
        )
    return wanted


@dataclass(frozen=True)
class _ValidationSums:
    """What the targets of a validation add up to."""

    targets: float
    nats: float
    """Of all targets."""
    text_nats: float
    """Of the targets that are not end-of-text, which has no bytes."""
    text_bytes: float

    def tags(self, name: str) -> dict[str, float]:
        """`NAME/loss`, the mean nats of a target, and `NAME/bits_per_byte`, if there is text."""
        found = {f"{name}/loss": self.nats / self.targets}
        if self.text_bytes:
            found[f"{name}/bits_per_byte"] = self.text_nats / (math.log(2) * self.text_bytes)
        return found

    def per_target(self, weight: float) -> "_ValidationSums":
        """The same of `weight` targets."""
        part = weight / self.targets
        return _ValidationSums(
            weight, self.nats * part, self.text_nats * part, self.text_bytes * part
        )


def mean_of(parts: Sequence[_ValidationSums]) -> _ValidationSums:
    """The sums of all parts together."""
    columns = zip(*(astuple(part) for part in parts), strict=True)
    return _ValidationSums(*map(math.fsum, columns))


def validation_sums(
    subject: Subject,
    shards: TokenShards,
    tokens: int,
    context_length: int,
    micro_batch: int,
    dtype: torch.dtype,
    padded: bool = True,
) -> _ValidationSums:
    """The loss of the plain model on the first `tokens` of a validation split.

    `padded`: over all logits, as in training, or over those of real ids. If memory runs out, the
    micro-batch is halved.
    Raises: ValueError if the split has fewer windows, a single window does not fit in memory, or
    the loss is not finite.
    """
    windows = validation_tokens(shards, tokens, context_length) // context_length
    model, device = subject.model, subject.ranks.device
    # Bytes of the tokens themselves: in decoded text, half a character would count as 3 bytes.
    token_bytes = subject.tokenizer.token_bytes()
    limit = MemoryLimit(device)

    def score(part: _WindowBatch) -> Tensor:
        shape = part.rows, part.length
        read = shards.read(part.first * part.length, part.tokens + 1).astype(np.int64)
        ids = on_device(read[:-1].reshape(shape), device)
        targets = on_device(read[1:].reshape(shape), device)
        lengths = on_device(token_bytes[read[1:]].reshape(shape), device)
        with autocast(dtype, device):
            nats = _token_losses(subject, ids, targets, padded).double()  # (B, T)
        text = nats * (targets != subject.tokenizer.end_of_text)
        return torch.stack((nats.sum(1), text.sum(1), lengths.sum(1).double()), dim=1)

    def score_parts(batch: _WindowBatch) -> tuple[slice, Tensor]:
        parts = [values for _, values in limit.run(batch, score)]
        return slice(batch.first, batch.first + batch.rows), torch.cat(parts)

    batches = [
        _WindowBatch(first, min(micro_batch, windows - first), context_length)
        for first in range(0, windows, micro_batch)
    ]
    with evaluating(model):
        table = split_over_ranks(batches, score_parts, windows, _COLUMNS, subject.ranks)
    # fsum is exact, so the sum does not depend on the order of the windows.
    nats, text_nats, text_bytes = (math.fsum(column) for column in table.T)
    if not math.isfinite(nats):
        raise ValueError(f"the validation loss is {nats}; the weights are damaged or have diverged")
    return _ValidationSums(windows * context_length, nats, text_nats, text_bytes)


def _token_losses(subject: Subject, ids: Tensor, targets: Tensor, padded: bool) -> Tensor:
    """The loss of every target, in float32. Shapes: (B, T), (B, T) -> (B, T)."""
    model = subject.model
    states = model.hidden(ids, separator=subject.separator).flatten(0, 1)  # (B, T) -> (B * T, C)
    losses = []
    head = model.float32_head if padded else model.masked_logits
    for chunk, wanted in head_chunks(states, targets.flatten(), model.config.padded_vocab_size):
        logits = head(chunk)  # (N, C) -> (N, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(losses).view_as(ids)
