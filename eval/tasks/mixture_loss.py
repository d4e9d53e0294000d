"""Validation loss on the data of a run: of each source of a mixture, and of the mixture."""

import logging
from dataclasses import dataclass

import torch

from data_prep.dataset.shards import TokenShards
from data_prep.order.training_data import Source, TrainingData, open_training_data
from data_prep.order.weights import folders_and_weights
from eval.result import TaskResult
from eval.subject import REFERENCE_VAL_TOKENS, VAL_MICRO_BATCH, EvalOptions, Subject
from eval.tasks.val_loss import mean_of, validation_sums, validation_tokens
from model.precision import choose_dtype
from storage.option_values import AtMost

UNPADDED = "val_unpadded"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """What is validated of a source."""

    source: Source
    shards: TokenShards
    tokens: int


def mixture_tokens(
    data: TrainingData, wanted: int, context_length: int, option: str = "--val-tokens"
) -> int:
    """The number of validation tokens to use: of one data set as `validation_tokens` says.

    Those of a mixture are divided equally, and a source with fewer gives what it has, so that the
    number is `wanted` itself.
    Raises: ValueError if there is not one window, or a single data set has fewer than wanted.
    """
    if not data.is_mixture:
        shards = data.sources[0].data.split("val")
        return validation_tokens(shards, wanted, context_length, option)
    if not _parts(data, wanted, context_length):
        raise ValueError(
            f"no source of the mixture has {context_length + 1} validation tokens, which a window "
            "needs; prepare one again with more (--val-tokens of the script in data_prep/)"
        )
    return int(wanted)


def _parts(data: TrainingData, wanted: int, context_length: int) -> list[_Part]:
    """The sources that have a window to validate on, each with its equal part of the tokens."""
    share = AtMost(max(int(wanted) // len(data.sources), context_length))
    return [
        _Part(source, shards, validation_tokens(shards, share, context_length))
        for source in data.sources
        if source.manifest.val.tokens > context_length
        for shards in [source.data.split("val")]
    ]


def mixture_loss(
    subject: Subject,
    data: TrainingData,
    tokens: int,
    context_length: int,
    micro_batch: int,
    dtype: torch.dtype,
    padded: bool = True,
) -> dict[str, float]:
    """`val/loss` (mean nats per target) and `val/bits_per_byte`; `val_unpadded/` if not `padded`.

    With several sources also `val/NAME/loss` and `val/NAME/bits_per_byte` of each, and the first
    two are the means of the sources by their weights at the start of the run. A source without
    validation tokens, or of weight 0 then, takes no part in the means.
    Raises: ValueError as `validation_sums` does.
    """
    prefix = "val" if padded else UNPADDED
    how = (context_length, micro_batch, dtype, padded)
    if not data.is_mixture:
        shards = data.sources[0].data.split("val")
        return validation_sums(subject, shards, tokens, *how).tags(prefix)
    found = [
        (part.source, validation_sums(subject, part.shards, part.tokens, *how))
        for part in _parts(data, tokens, context_length)
    ]
    tags: dict[str, float] = {}
    for source, sums in found:
        tags |= sums.tags(f"{prefix}/{source.name}")
    counted = [(source, sums) for source, sums in found if source.weight] or found
    mean = mean_of([sums.per_target(float(source.weight) or 1.0) for source, sums in counted])
    return mean.tags(prefix) | tags


def val_loss(subject: Subject, options: EvalOptions, padded: bool = True) -> TaskResult:
    """The task: validation loss on the data in `options.data`."""
    data, length = validation_data(subject, options), subject.model.config.context_length
    wanted = options.val_tokens or AtMost(REFERENCE_VAL_TOKENS)
    tokens = mixture_tokens(data, wanted, length)
    if tokens < wanted:
        places = " ".join(map(str, options.data))
        log.info("val_loss: %s tokens, all whole windows of %s", f"{tokens:,}", places)
    if subject.mask_documents:
        log.info("val_loss: each document of a window alone, as the model was trained")
    tags = mixture_loss(
        subject,
        data,
        tokens,
        length,
        options.micro_batch or VAL_MICRO_BATCH,
        choose_dtype(options.dtype, subject.ranks.device),
        padded,
    )
    return TaskResult(tags)


def validation_data(subject: Subject, options: EvalOptions) -> TrainingData:
    """Open the data in `options.data`.

    Raises: ValueError if there is no data set, one was made with another tokenizer, or has too few
    validation tokens.
    """
    if not options.data:
        raise ValueError("val_loss has no data set to read; give its folder as --data")
    for place in folders_and_weights(options.data):
        if not place.folder.is_dir():
            raise ValueError(
                f"there is no data set at {place.folder} for val_loss; if it was moved, give its "
                "folder as --data"
            )
    data = open_training_data(options.data)
    tokenizer = data.tokenizer()
    if tokenizer.ranks_sha256 != subject.tokenizer.ranks_sha256:
        raise ValueError(
            f"{data.sources[0].data.folder} was made with tokenizer {tokenizer.name}, the model "
            f"was trained with another, {subject.tokenizer.name}; prepare the data with the "
            "model's tokenizer"
        )
    wanted = options.val_tokens or AtMost(REFERENCE_VAL_TOKENS)
    mixture_tokens(data, wanted, subject.model.config.context_length)
    return data
