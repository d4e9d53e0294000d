"""One text after the other from one model; what two begin with is not encoded again.

Keys and values of the last text stay. Of the next one only what follows their common beginning is
encoded: a text that is continued costs its new tokens only, another sample of a prompt no prompt.
"""

import torch

from eval.sampling.attention_kernels import decoding_kernels
from eval.sampling.decoding import OnToken, PartialSample, next_tokens
from eval.sampling.next_token import GenerateOptions
from eval.subject import evaluating
from model.gpt import GPT
from model.precision import autocast, choose_dtype


class TextWriter:
    """Samples texts from a model, one at a time, and keeps what it has encoded."""

    def __init__(self, model: GPT, options: GenerateOptions) -> None:
        """Of the options only `dtype` counts."""
        self._model = model
        self._device = model.wte.weight.device
        self._dtype = choose_dtype(options.dtype, self._device)
        self._cache = model.new_cache(1, 0, self._dtype)
        self._ids: list[
            int
        ] = []  # of the tokens in the cache, which may hold more after an interruption

    def finish(self, sample: PartialSample, options: GenerateOptions, on_token: OnToken) -> None:
        """Sample until the text is finished. It may be interrupted between any two tokens.

        Raises: ValueError if the logits are not finite, or memory runs out.
        """
        context_length = self._model.config.context_length
        sample.warn_if_truncated(context_length)
        needed = len(sample.window(context_length)) + options.max_tokens
        try:
            self._make_room(min(context_length, needed))
            with evaluating(self._model), decoding_kernels(self._device):
                while sample.finish_reason is None:
                    logits = self._logits_after(sample.window(context_length))
                    (token,), (logprob,) = next_tokens(logits, [sample], options)
                    on_token(sample, sample.add(token, logprob))
        except torch.OutOfMemoryError as error:
            self._cache, self._ids = self._model.new_cache(1, 0, self._dtype), []
            raise ValueError(
                f"{needed} tokens do not fit the memory of {self._device}; use fewer max_tokens"
            ) from error

    def _make_room(self, slots: int) -> None:
        if slots > self._cache.keys.size(3):
            larger = self._model.new_cache(1, slots, self._dtype)
            larger.copy_row(0, self._cache, 0)
            self._cache = larger

    def _logits_after(self, window: list[int]) -> torch.Tensor:
        """The logits of the token that follows. Shapes: (1, V)."""
        known = self._shared(window[:-1])
        self._cache.lengths, self._ids = [known], self._ids[:known]
        with autocast(self._dtype, self._device):
            # As in decoding.py: the newest token alone, so that the bits are the same.
            if known < len(window) - 1:
                self._encode(window[known:-1])
            hidden = self._encode(window[-1:])
            return self._model.masked_logits(hidden[:, -1])  # (1, C) -> (1, V)

    def _shared(self, ids: list[int]) -> int:
        """How many tokens the cache and this text have in common at their beginning."""
        pairs = enumerate(zip(self._ids, ids, strict=False))
        return next((n for n, (ours, new) in pairs if ours != new), min(len(self._ids), len(ids)))

    def _encode(self, ids: list[int]) -> torch.Tensor:
        """Add tokens to the cache. Shapes: -> (1, T, C)."""
        tokens = torch.tensor([ids], device=self._device)  # (1, T)
        hidden = self._model.hidden(tokens, cache=self._cache)
        self._ids += ids
        return hidden
