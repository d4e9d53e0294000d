"""Samples drawn side by side with a KV cache: prompts of any lengths in one batch.

When a sample's window is full (`context_length` tokens), its newer half is kept and encoded again:
learned positions cannot slide. A prompt longer than the window is cut the same way. Samples that
have ended leave the batch. Shape letters: B samples, C model width, V padded vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data_prep.tokenizer import Tokenizer
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
from parallel.collectives import all_gather_object, raise_on_all_ranks

FinishReason = Literal["end_of_text", "stop", "length"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """What the model added to a prompt."""

    prompt_index: int
    sample_index: int
    text: str
    """Without end-of-text, and cut before a stop string."""
    token_ids: tuple[int, ...]
    """Every token drawn but end-of-text; those of a stop string are among them."""
    finish_reason: FinishReason
    logprob_sum: float
    """Nats of `token_ids` under the model itself: temperature 1, no penalty, all tokens."""


class PartialSample:
    """A sample that is being drawn."""

    def __init__(
        self,
        prompt: list[int],
        where: tuple[int, int],
        tokenizer: Tokenizer,
        options: GenerateOptions,
    ) -> None:
        """`where` is the prompt's index and the sample's among those of the prompt."""
        self.ids = list(prompt)
        self.where = where
        self.finish_reason: FinishReason | None = None
        self.seen: Tensor | None = None
        """Tokens that `ids` holds, shape (V,); only kept for a repetition penalty."""
        self._begin = len(prompt)
        self._window_begin = 0
        self._logprob_sum = 0.0
        self._end_of_text = tokenizer.end_of_text
        self._most = options.max_tokens
        self._uniforms = uniform_numbers(options.seed, *where, options.max_tokens).tolist()
        self._stream = TextStream(tokenizer, options.stop)

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return self._uniforms[len(self.ids) - self._begin]

    def warn_if_truncated(self, context_length: int) -> None:
        """Warn, once a prompt, that it is longer than the window."""
        prompt, sample = self.where
        if sample == 0 and self._begin > context_length:
            log.warning(
                "prompt %d has %d tokens, more than context_length=%d: its last %d are continued",
                *(prompt + 1, self._begin, context_length, max(1, context_length // 2)),
            )

    def window(self, context_length: int) -> list[int]:
        """The tokens that the next one is drawn from."""
        if len(self.ids) - self._window_begin > context_length:
            self._window_begin = len(self.ids) - max(1, context_length // 2)
        return self.ids[self._window_begin :]

    def add(self, token: int, logprob: float) -> str:
        """Add a drawn token; gives the text that is certain now and was not before."""
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
        elif len(self.ids) - self._begin == self._most:
            self.finish_reason = "length"
        return new + self._stream.finish() if self.finish_reason else new

    def sample(self) -> Sample:
        """The finished sample."""
        assert self.finish_reason is not None
        drawn = tuple(self.ids[self._begin :])
        return Sample(*self.where, self._stream.text, drawn, self.finish_reason, self._logprob_sum)


OnToken = Callable[[PartialSample, str], None]
"""Called after each token with the sample and the text it gained."""


def ignore_token(draft: PartialSample, new: str) -> None:
    """Nobody looks on."""


def start_samples(
    tokenizer: Tokenizer, prompts: Sequence[str], options: GenerateOptions
) -> list[PartialSample]:
    """A draft for each sample of each prompt, in order; an empty prompt begins a new document."""
    return [
        PartialSample(ids, (prompt, sample), tokenizer, options)
        for prompt, text in enumerate(prompts)
        for ids in [tokenizer.encode(text) or [tokenizer.end_of_text]]
        for sample in range(options.samples)
    ]


def split_into_batches(
    drafts: Sequence[PartialSample], options: GenerateOptions
) -> list[list[PartialSample]]:
    """The drafts in batches, formed without regard to who draws them."""
    size = options.batch_size
    return [list(drafts[i : i + size]) for i in range(0, len(drafts), size)]


def sample_on_ranks(
    subject: Subject,
    drafts: Sequence[PartialSample],
    options: GenerateOptions,
    watch: OnToken = ignore_token,
) -> list[Sample]:
    """Every draft as a finished sample, in order, on every rank; each draws its own batches.

    Raises: ValueError on every rank if one could not.
    """
    ranks, batches = subject.ranks, split_into_batches(drafts, options)
    own = batches[ranks.rank :: ranks.world_size]
    error = None
    try:
        sample_batches(subject.model, own, options, watch)
    except ValueError as found:
        error = found
    raise_on_all_ranks(error)
    shares = all_gather_object([[draft.sample() for draft in batch] for batch in own])
    dealt = (shares[i % ranks.world_size][i // ranks.world_size] for i in range(len(batches)))
    return [sample for batch in dealt for sample in batch]


def sample_batches(
    model: GPT,
    batches: Sequence[list[PartialSample]],
    options: GenerateOptions,
    watch: OnToken = ignore_token,
) -> None:
    """Finish every draft; after running out of memory, half as many go on side by side.

    Raises: ValueError for logits that are not numbers, or if one draft alone is too much.
    """
    for draft in (draft for batch in batches for draft in batch):
        draft.warn_if_truncated(model.config.context_length)
    waiting = list(reversed(batches))
    most = options.batch_size
    with evaluating(model):
        while waiting:
            drafts = [draft for draft in waiting.pop() if draft.finish_reason is None]
            if len(drafts) > most:
                waiting += [drafts[most:], drafts[:most]]
            elif drafts and not draw(model, drafts, options, watch):
                most = len(drafts) // 2
                if most == 0:
                    raise ValueError(
                        f"one sample does not fit the memory of {model.wte.weight.device}; "
                        "use a device with more, or a smaller model"
                    )
                log.warning("out of memory: %d samples side by side from here", most)
                waiting.append(drafts)


def draw(model: GPT, drafts: list[PartialSample], options: GenerateOptions, watch: OnToken) -> bool:
    """Finish one batch of drafts; False if memory ran out, the drafts then being unfinished."""
    try:
        _draw(model, drafts, options, watch)
    except torch.OutOfMemoryError:
        return False
    return True


def _draw(
    model: GPT, drafts: list[PartialSample], options: GenerateOptions, watch: OnToken
) -> None:
    device = model.wte.weight.device
    dtype = choose_dtype(options.dtype, device)
    context_length = model.config.context_length
    live = list(drafts)
    longest = max(len(draft.window(context_length)) for draft in live)
    slots = min(context_length, longest + options.max_tokens)
    cache = model.new_cache(len(live), slots, dtype)
    while live:
        with autocast(dtype, device):
            encode_windows(model, cache, [draft.window(context_length) for draft in live])
            newest = torch.tensor([draft.ids[-1:] for draft in live], device=device)  # (B, 1)
            hidden = model.hidden(newest, cache=cache)[:, -1]  # (B, 1, C) -> (B, C)
            logits = model.masked_logits(hidden)  # (B, C) -> (B, V)
        tokens, logprobs = choose(logits, live, options)
        for draft, token, logprob in zip(live, tokens, logprobs, strict=True):
            watch(draft, draft.add(token, logprob))
        for row in reversed(range(len(live))):
            if live[row].finish_reason is not None:
                cache.drop(row)
                live[row] = live[-1]
                live.pop()


def encode_windows(model: GPT, cache: KVCache, windows: Sequence[list[int]]) -> None:
    """Bring each row of the cache up to its window but for the newest token.

    That is nothing for most rows and steps: only prompts, and windows that moved, are read anew,
    equal ones once and equally long ones together.
    """
    stale: dict[int, dict[tuple[int, ...], list[int]]] = {}  # by length, then tokens: the rows
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


def choose(
    logits: Tensor, drafts: Sequence[PartialSample], options: GenerateOptions
) -> tuple[list[int], list[float]]:
    """The next token of each draft and its nats under the model. Shapes: logits (B, V)."""
    check_logits(logits)
    adjusted = logits
    if options.repetition_penalty != 1:
        seen = torch.stack([_seen_tokens(draft, logits) for draft in drafts])  # B x (V) -> (B, V)
        adjusted = apply_repetition_penalty(logits, seen, options.repetition_penalty)
    uniforms = [draft.uniform for draft in drafts]
    numbers = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    tokens = sample_token(adjusted, numbers, options)
    return tokens.tolist(), log_probabilities(logits, tokens).tolist()


def _seen_tokens(draft: PartialSample, logits: Tensor) -> Tensor:
    if draft.seen is None:
        draft.seen = torch.zeros(logits.size(-1), dtype=torch.bool, device=logits.device)
        draft.seen[draft.ids] = True
    return draft.seen


def generate(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerateOptions
) -> list[str]:
    """What the model adds to each prompt; `options.samples` texts a prompt, one after the other.

    An empty prompt begins a new document. Raises: ValueError for logits that are not numbers.
    """
    drafts = start_samples(tokenizer, prompts, options)
    sample_batches(model, split_into_batches(drafts, options), options)
    return [draft.sample().text for draft in drafts]
