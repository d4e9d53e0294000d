"""Samples the next token: one row of logits and one random number in, one token out.

The random numbers of a sample depend only on (seed, prompt, sample): not on other samples in its
batch, the number of ranks or torch's global random state, which is neither read nor changed.
Shape letters: B rows, V padded vocabulary, K tokens that may be sampled.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from model.precision import Precision

_LARGEST = 1_000_000  # tokens, samples, and samples in a batch
MAX_TEMPERATURE = 1000.0  # all tokens are equally likely there; 1e39 would be infinite in float32
_PENALTY_RANGE = (0.01, 100.0)  # with other penalties, float32 logits may overflow


@dataclass(frozen=True)
class GenerateOptions:
    """How text is generated."""

    max_tokens: int = 128
    """Maximum number of new tokens per sample."""
    temperature: float = 1.0
    """Divides the logits; 0: greedy decoding."""
    top_k: int = 50
    """Sample only from the K most likely tokens; 0: from all.
    Exactly K remain; torch.topk decides between those that tie for the last places."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability; 1: from all."""
    samples: int = 1
    """Number of samples per prompt."""
    seed: int = 1337
    """Random seed. It gives the same text on any number of ranks."""
    dtype: Precision = "auto"
    """Precision of matrix products; auto: bfloat16 on CUDA, float32 on the CPU."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or text; 1: none."""
    stop: tuple[str, ...] = ()
    """Strings that end a text and are removed from it; write a line break in bash as $'\\n'."""
    batch_size: int = 16
    """Samples in one batch; halved if memory runs out."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} gives no text; use 1 or more")
            if getattr(self, name) > _LARGEST:
                raise ValueError(
                    f"{name}={getattr(self, name)} is too much; use {_LARGEST} or less"
                )
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature={self.temperature} cannot divide logits; use 0 (greedy) to "
                f"{MAX_TEMPERATURE:g}"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} is negative; use 1 or more, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a probability; use more than 0, at most 1")
        lowest, highest = _PENALTY_RANGE
        if not lowest <= self.repetition_penalty <= highest:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} is not in {lowest} to {highest}; "
                "use 1 for none, or about 1.2"
            )
        if "" in self.stop:
            raise ValueError("an empty stop string ends every text before it begins; omit it")


def uniform_numbers(seed: int, prompt: int, sample: int, count: int) -> Tensor:
    """The random numbers in [0, 1) of one sample, one per token. Shape (count,) float64."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def check_logits(logits: Tensor) -> None:
    """Raises: ValueError if a row has a logit that is NaN or +inf, or only -inf."""
    # One maximum per row is enough: it is NaN or infinite if any logit is NaN or +inf.
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the logits are not numbers; the weights are damaged or have diverged")


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens in `seen` less likely. Shapes: (B, V), seen (B, V) bool -> (B, V).

    Source: https://arxiv.org/abs/1909.05858. It only divides, which makes tokens with negative
    logits more likely; these are multiplied, as transformers does.
    """
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lower, logits)


def filter_logits(logits: Tensor, options: GenerateOptions) -> tuple[Tensor, Tensor]:
    """Apply temperature, top-k and top-p. Shapes: (B, V) -> 2 x (B, K).

    Returns float64 probabilities, not normalised, and the token ids that they belong to.
    """
    # The largest logit becomes 0 first, so that a tiny temperature cannot make it infinite.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / options.temperature
    count = min(options.top_k or logits.size(-1), logits.size(-1))
    if count == logits.size(-1) and options.top_p == 1:
        ids = torch.arange(count, device=logits.device).expand_as(logits)
        return logits.double().softmax(dim=-1), ids
    logits, ids = logits.topk(count, dim=-1)  # (B, V) -> (B, K), most likely first
    probabilities = logits.double().softmax(dim=-1)
    if options.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    # Sort by id. In order of probability, the rounding of another batch size could swap two almost
    # equal tokens, and the same random number would then select the other one.
    ids, order = ids.sort(dim=-1)
    return probabilities.gather(1, order), ids


def sample_token(logits: Tensor, uniforms: Tensor, options: GenerateOptions) -> Tensor:
    """Sample one token per row by inverting the distribution function at the row's random number.

    Shapes: logits (B, V) float32, uniforms (B,) in [0, 1) -> (B,).
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, ids = filter_logits(logits, options)
    reached = probabilities.cumsum(dim=-1)
    wanted = uniforms[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, wanted, right=True)
    # Rounding can put the largest random numbers past the last token with a probability above 0.
    last = reached.argmax(dim=-1, keepdim=True)
    return ids.gather(1, torch.minimum(place, last))[:, 0]


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log probabilities of tokens in nats, before any option. Shapes: (B, V), (B,) -> (B,)."""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
