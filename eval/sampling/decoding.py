"""Batched decoding with a KV cache: continues prompts of different lengths in one batch.

A window has at most `context_length` tokens. When it is full, its newer half is kept and encoded
again, because learned positions cannot slide. A longer prompt is cut in the same way. Finished
samples leave the batch. Shape letters: B samples, C model width, V padded vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data_prep.tokenizer import Tokenizer
from eval.sampling.attention_kernels import decoding_kernels
from eval.sampling.next_token import (
    GenerateOptions,
    apply_repetition_penalty,
    check_logits,
    log_probabilities,
    sample_token,
    uniform_numbers,
)
from eval.sampling.text_stream import TextStream
from eval.subject import Subject, evaluating
from model.gpt import GPT
from model.kv_cache import KVCache
from model.precision import autocast, choose_dtype
from parallel.collectives import all_gather_object, together

_FinishReason = Literal["end_of_text", "stop", "length"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A finished continuation of a prompt."""

    prompt_index: int
    sample_index: int
    text: str
    """The text without end-of-text, cut before the first stop string."""
    token_ids: tuple[int, ...]
    """All sampled tokens except end-of-text, including those of a stop string."""
    finish_reason: _FinishReason
    logprob_sum: float
    """Log probability of `token_ids` in nats under the unmodified model: temperature 1, no penalty,
    all tokens allowed."""


class PartialSample:
    """A sample that is still growing token by token."""

    def __init__(
        self,
        prompt: list[int],
        index: tuple[int, int],
        tokenizer: Tokenizer,
        options: GenerateOptions,
    ) -> None:
        """`index` is (index of the prompt, index of the sample within that prompt)."""
        self.ids = list(prompt)
        self.index = index
        self.finish_reason: _FinishReason | None = None
        self.seen: Tensor | None = None
        """Which tokens are in `ids`, shape (V,) bool; only used for a repetition penalty."""
        self._begin = len(prompt)
        self._window_begin = 0
        self._logprob_sum = 0.0
        self._end_of_text = tokenizer.end_of_text
        self._max_tokens = options.max_tokens
        self._uniforms = uniform_numbers(options.seed, *index, options.max_tokens).tolist()
        self._stream = TextStream(tokenizer, options.stop)

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return self._uniforms[len(self.ids) - self._begin]

    def warn_if_truncated(self, context_length: int) -> None:
        """Warn, once per prompt, if it is longer than the window."""
        prompt, sample = self.index
        if sample == 0 and self._begin > context_length:
            log.warning(
                "prompt %d has %d tokens, more than context_length=%d: only its last %d are used",
                *(prompt + 1, self._begin, context_length, max(1, context_length // 2)),
            )

    def window(self, context_length: int) -> list[int]:
        """The tokens that the model reads to predict the next one."""
        if len(self.ids) - self._window_begin > context_length:
            self._window_begin = len(self.ids) - max(1, context_length // 2)
        return self.ids[self._window_begin :]

    def add(self, token: int, logprob: float) -> str:
        """Append a sampled token. Returns the new text that no later token can change."""
        if token == self._end_of_text:
            self.finish_reason = "end_of_text"
            return self._stream.finish()
        self.ids.append(token)
        self._logprob_sum += logprob
        if self.seen is not None:
            self.seen[token] = True
        new = self._stream.add(token)
        if self._stream.stopped:
            self.finish_reason = "stop"
        elif len(self.ids) - self._begin == self._max_tokens:
            self.finish_reason = "length"
        return new + self._stream.finish() if self.finish_reason else new

    def to_sample(self) -> Sample:
        """The finished sample."""
        assert self.finish_reason is not None
        new = tuple(self.ids[self._begin :])
        return Sample(*self.index, self._stream.text, new, self.finish_reason, self._logprob_sum)


OnToken = Callable[[PartialSample, str], None]
"""Callback after each token, with the sample and its new text."""


def ignore_token(sample: PartialSample, new: str) -> None:
    """An `OnToken` callback that does nothing."""


def start_samples(
    tokenizer: Tokenizer, prompts: Sequence[str], options: GenerateOptions
) -> list[PartialSample]:
    """An unfinished sample for each sample of each prompt, in order.

    An empty prompt starts a new document.
    """
    return [
        PartialSample(ids, (prompt, sample), tokenizer, options)
        for prompt, text in enumerate(prompts)
        for ids in [tokenizer.encode(text) or [tokenizer.end_of_text]]
        for sample in range(options.samples)
    ]


def split_into_batches(
    samples: Sequence[PartialSample], options: GenerateOptions
) -> list[list[PartialSample]]:
    """The samples in batches, which do not depend on the number of ranks."""
    size = options.batch_size
    return [list(samples[i : i + size]) for i in range(0, len(samples), size)]


def sample_on_ranks(
    subject: Subject,
    samples: Sequence[PartialSample],
    options: GenerateOptions,
    on_token: OnToken = ignore_token,
    guard: Callable[[Callable[[], None]], None] = lambda action: action(),
) -> list[Sample]:
    """Finish all samples, with the batches split over the ranks. Every rank returns all, in order.

    `guard` calls the sampling of this rank, and may turn an error of another kind into ValueError.
    Raises: ValueError on every rank if sampling failed on one with that or OSError.
    """
    ranks, batches = subject.ranks, split_into_batches(samples, options)
    own = batches[ranks.rank :: ranks.world_size]
    together(lambda: guard(lambda: sample_batches(subject.model, own, options, on_token)))
    by_rank = all_gather_object([[sample.to_sample() for sample in batch] for batch in own])
    in_order = (by_rank[i % ranks.world_size][i // ranks.world_size] for i in range(len(batches)))
    return [sample for batch in in_order for sample in batch]


def sample_batches(
    model: GPT,
    batches: Sequence[list[PartialSample]],
    options: GenerateOptions,
    on_token: OnToken = ignore_token,
) -> None:
    """Finish every sample. If memory runs out, continue with batches of half the size.

    Raises: ValueError if the logits are not finite, or a single sample does not fit in memory.
    """
    for sample in (sample for batch in batches for sample in batch):
        sample.warn_if_truncated(model.config.context_length)
    waiting = list(reversed(batches))
    batch_size = options.batch_size
    with evaluating(model), decoding_kernels(model.wte.weight.device):
        while waiting:
            batch = [sample for sample in waiting.pop() if sample.finish_reason is None]
            if len(batch) > batch_size:
                waiting += [batch[batch_size:], batch[:batch_size]]
            elif batch and not _try_sample_batch(model, batch, options, on_token):
                batch_size = len(batch) // 2
                if batch_size == 0:
                    raise ValueError(
                        f"one sample does not fit the memory of {model.wte.weight.device}; "
                        "use a device with more memory, or a smaller model"
                    )
                log.warning("out of memory: %d samples per batch from now on", batch_size)
                waiting.append(batch)


def _try_sample_batch(
    model: GPT, batch: list[PartialSample], options: GenerateOptions, on_token: OnToken
) -> bool:
    """Finish the samples of one batch; False if memory ran out, with some of them unfinished."""
    try:
        _sample_batch(model, batch, options, on_token)
    except torch.OutOfMemoryError:
        return False
    return True


def _sample_batch(
    model: GPT, batch: list[PartialSample], options: GenerateOptions, on_token: OnToken
) -> None:
    device = model.wte.weight.device
    dtype = choose_dtype(options.dtype, device)
    context_length = model.config.context_length
    active = list(batch)
    longest = max(len(sample.window(context_length)) for sample in active)
    slots = min(context_length, longest + options.max_tokens)  # positions that a row can need
    cache = model.new_cache(len(active), slots, dtype)
    while active:
        with autocast(dtype, device):
            _encode_windows(model, cache, [sample.window(context_length) for sample in active])
            newest = torch.tensor([sample.ids[-1:] for sample in active], device=device)  # (B, 1)
            hidden = model.hidden(newest, cache=cache)[:, -1]  # (B, 1, C) -> (B, C)
            logits = model.masked_logits(hidden)  # (B, C) -> (B, V)
        tokens, logprobs = next_tokens(logits, active, options)
        for sample, token, logprob in zip(active, tokens, logprobs, strict=True):
            on_token(sample, sample.add(token, logprob))
        # From the end, because `drop` moves the last row into the place of the dropped one.
        for row in reversed(range(len(active))):
            if active[row].finish_reason is not None:
                cache.drop(row)
                active[row] = active[-1]
                active.pop()


def _encode_windows(model: GPT, cache: KVCache, windows: Sequence[list[int]]) -> None:
    """Make each row of the cache hold its window except for the newest token.

    Most rows need nothing. Only new prompts and windows that were cut are encoded: equal windows
    once, and windows of equal length in one forward pass.
    """
    stale: dict[int, dict[tuple[int, ...], list[int]]] = {}  # rows, by length and by tokens
    for row, window in enumerate(windows):
        if len(window) - 1 != cache.lengths[row]:
            known = tuple(window[:-1])
            stale.setdefault(len(known), {}).setdefault(known, []).append(row)
    for length, rows_by_tokens in stale.items():
        fresh = model.new_cache(len(rows_by_tokens), length, cache.keys.dtype)
        if length:
            ids = torch.tensor(list(rows_by_tokens), device=cache.keys.device)
            model.hidden(ids, cache=fresh)
        for place, rows in enumerate(rows_by_tokens.values()):
            for row in rows:
                cache.copy_row(row, fresh, place)


def next_tokens(
    logits: Tensor, samples: Sequence[PartialSample], options: GenerateOptions
) -> tuple[list[int], list[float]]:
    """The next token of each sample, and its log probability in nats. Shapes: logits (B, V)."""
    check_logits(logits)
    adjusted = logits
    if options.repetition_penalty != 1:
        seen = torch.stack([_seen_tokens(sample, logits) for sample in samples])  # (B, V)
        adjusted = apply_repetition_penalty(logits, seen, options.repetition_penalty)
    uniforms = [sample.uniform for sample in samples]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens = sample_token(adjusted, numbers, options)
    return tokens.tolist(), log_probabilities(logits, tokens).tolist()


def _seen_tokens(sample: PartialSample, logits: Tensor) -> Tensor:
    if sample.seen is None:
        sample.seen = torch.zeros(logits.size(-1), dtype=torch.bool, device=logits.device)
        sample.seen[sample.ids] = True
    return sample.seen
