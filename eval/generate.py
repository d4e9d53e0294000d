"""Text from a model: sampling with a KV cache, several prompts and samples at once.

    python eval/generate.py --checkpoint runs/gpt2/checkpoints/latest --prompt "Once upon a time"

A sample's random numbers follow from (seed, sample index) alone: not from its neighbours in the
batch, the number of ranks or torch's global random state, which is neither read nor moved.
When the window is full, its newer half is kept and encoded again, and generation goes on.
Shape letters: B samples side by side, T tokens, C model width, V padded vocabulary.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from data_prep.tokenizer import Tokenizer
from eval.subject import evaluating, load_subject
from model.gpt import GPT, KVCache
from model.precision import Precision, autocast, choose_dtype
from parallel.ranks import quiet_other_ranks, start, stop, user_errors

log = logging.getLogger("eval")


@dataclass(frozen=True)
class GenerateOptions:
    """How text is drawn."""

    max_tokens: int = 128
    """Tokens drawn for each sample, unless end-of-text comes first."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 50
    """Only so many likeliest tokens are drawn; 0 is all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn; 1 is all."""
    samples: int = 1
    """Samples for each prompt."""
    seed: int = 1337
    """Decides the text; the same for any number of ranks."""
    dtype: Precision = "auto"
    """Arithmetic of matrix products; auto is bfloat16 on CUDA and float32 on the CPU."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} gives no text; use 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature} cannot divide logits; use 0 (greedy) or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is negative; use 1 or more, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p={self.top_p} is no share of the probability; use more than 0, at most 1"
            )


def generate(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], options: GenerateOptions
) -> list[str]:
    """What the model adds to each prompt; `options.samples` texts a prompt, one after the other.

    An empty prompt begins a new document. Raises: ValueError for logits that are not numbers.
    """
    starts = [tokenizer.encode(prompt) or [tokenizer.end_of_text] for prompt in prompts]
    jobs = [ids for ids in starts for _ in range(options.samples)]
    texts = [""] * len(jobs)
    with evaluating(model):
        for length in sorted(set(map(len, jobs))):
            alike = [i for i, ids in enumerate(jobs) if len(ids) == length]
            uniforms = torch.stack([uniform_numbers(options, i) for i in alike])
            tokens = draw(model, [jobs[i] for i in alike], uniforms, options, tokenizer.end_of_text)
            for i, row in zip(alike, tokens, strict=True):
                texts[i] = tokenizer.decode(row)
    return texts


def uniform_numbers(options: GenerateOptions, sample: int) -> Tensor:
    """The random numbers in [0, 1) of one sample, one a token. Shape (max_tokens,) float64."""
    digest = hashlib.blake2b(f"{options.seed}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(options.max_tokens, generator=generator, dtype=torch.float64)


def draw(
    model: GPT,
    prompts: list[list[int]],
    uniforms: Tensor,
    options: GenerateOptions,
    end_of_text: int,
) -> list[list[int]]:
    """Continue prompts of one length until end-of-text, which is left out.

    Shapes: prompts B lists of T ids, uniforms (B, max_tokens).
    """
    T = model.config.context_length
    device = model.wte.weight.device
    dtype = choose_dtype(options.dtype, device)
    ids = torch.tensor(prompts, device=device)  # (B, T)
    window = newer_half(ids, T) if ids.size(1) > T else ids
    cached = min(T, window.size(1) + options.max_tokens)
    like = torch.empty(0, dtype=dtype, device=device)
    cache = KVCache(model.config, len(prompts), cached, like)
    uniforms = uniforms.to(device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    picked = []
    new = window  # what the cache does not hold yet
    for step in range(options.max_tokens):
        if cache.length + new.size(1) > T:
            cache.length = 0
            window = new = newer_half(window, T)
        with autocast(dtype, device):
            hidden = model.hidden(new, cache=cache)  # (B, T) -> (B, T, C)
            logits = model.live_logits(hidden[:, -1])  # (B, C) -> (B, V)
        new = pick(logits, uniforms[:, step], options)[:, None]  # (B, 1)
        window = torch.cat((window, new), dim=1)
        picked.append(new)
        ended |= new[:, 0] == end_of_text
        if ended.all():
            break
    rows = torch.cat(picked, dim=1).tolist()
    return [row[: row.index(end_of_text)] if end_of_text in row else row for row in rows]


def newer_half(ids: Tensor, context_length: int) -> Tensor:
    """The last half window of `ids`, what is kept when a window is full."""
    return ids[:, -max(1, context_length // 2) :]


def pick(logits: Tensor, uniforms: Tensor, options: GenerateOptions) -> Tensor:
    """One token for each row, by inverting the distribution at the row's random number.

    Shapes: logits (B, V) float32, uniforms (B,) in [0, 1) -> (B,).
    Raises: ValueError for logits that are not numbers.
    """
    if logits.isnan().any():
        raise ValueError("the logits are not numbers; the weights are damaged or have diverged")
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    # The largest logit is moved to 0 first: a tiny temperature must not make it infinite.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / options.temperature
    count = min(options.top_k or logits.size(-1), logits.size(-1))
    if count < logits.size(-1) or options.top_p < 1:
        logits, ids = logits.topk(count, dim=-1)  # (B, V) -> (B, K), likeliest first
    else:
        ids = torch.arange(count, device=logits.device).expand_as(logits)
    probabilities = logits.double().softmax(dim=-1)
    if options.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
        probabilities[:, 0] = probabilities[:, 0].clamp(min=torch.finfo(torch.float64).tiny)
    reached = probabilities.cumsum(dim=-1)
    wanted = uniforms[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, wanted, right=True)
    # Rounding may put the largest random numbers past the end; the last likely token is meant.
    last = reached.argmax(dim=-1, keepdim=True)
    return ids.gather(1, torch.minimum(place, last))[:, 0]


@dataclass(frozen=True)
class Arguments:
    """Continue prompts with a trained model."""

    checkpoint: Path
    """Checkpoint folder, such as runs/gpt2/checkpoints/latest."""
    prompt: tuple[str, ...] = ("",)
    """Beginnings to continue, one or more; an empty one begins a new document."""
    device: str = "auto"
    """auto, cpu or cuda; auto takes CUDA where there is one."""
    sampling: GenerateOptions = GenerateOptions()
    """How text is drawn."""


def main() -> None:
    """Print each prompt and what follows it, with a line between two samples."""
    quiet_other_ranks()
    with user_errors():
        arguments = tyro.cli(Arguments, config=(tyro.conf.OmitArgPrefixes,))
        options = arguments.sampling
        subject = load_subject(arguments.checkpoint, start(arguments.device))
        texts = generate(subject.model, subject.tokenizer, arguments.prompt, options)
        beginnings = [prompt for prompt in arguments.prompt for _ in range(options.samples)]
        whole = [prompt + text for prompt, text in zip(beginnings, texts, strict=True)]
        log.info("%s", "\n---\n".join(whole))
    stop()


if __name__ == "__main__":
    main()
