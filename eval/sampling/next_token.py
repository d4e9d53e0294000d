"""The choice of the next token: logits and one random number a row in, one token a row out.

A sample's random numbers follow from (seed, prompt, sample) alone: not from its neighbours in the
batch, the number of ranks or torch's global random state, which is neither read nor moved.
Shape letters: B rows, V padded vocabulary, K tokens that may be drawn.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from model.precision import Precision

PENALTIES = (0.01, 100.0)  # beyond these, penalised float32 logits may overflow


@dataclass(frozen=True)
class GenerateOptions:
    """How text is drawn."""

    max_tokens: int = 128
    """Tokens drawn for each sample, unless end-of-text or a stop string comes first."""
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
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in the prompt or text, multiplies negative ones; 1 is none.
    """
    stop: tuple[str, ...] = ()
    """Strings that end a text, which then lacks them; a line break in bash is $'\\n'."""
    batch_size: int = 16
    """Samples drawn side by side, halved where memory does not suffice."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples", "batch_size"):
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
        least, most = PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} is not within {least} to {most}; "
                "use 1 for none, or about 1.2"
            )
        if "" in self.stop:
            raise ValueError("an empty stop string ends every text before it begins; leave it out")


def uniform_numbers(seed: int, prompt: int, sample: int, count: int) -> Tensor:
    """The random numbers in [0, 1) of one sample, one a token. Shape (count,) float64."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def check_logits(logits: Tensor) -> None:
    """Raises: ValueError for logits that are not numbers."""
    # The maximum of a row is NaN or infinite if anything in it is NaN or +inf.
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the logits are not numbers; the weights are damaged or have diverged")


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens less likely that a row holds already. Shapes: (B, V), seen (B, V) bool -> (B, V).

    Source: https://arxiv.org/abs/1909.05858, with the sign that transformers gave it.
    """
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lower, logits)


def filter_logits(logits: Tensor, options: GenerateOptions) -> tuple[Tensor, Tensor]:
    """Probabilities, float64 and not normalised, and their ids. Shapes: (B, V) -> 2 x (B, K)."""
    # The largest logit is moved to 0 first: a tiny temperature must not make it infinite.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / options.temperature
    count = min(options.top_k or logits.size(-1), logits.size(-1))
    if count == logits.size(-1) and options.top_p == 1:
        ids = torch.arange(count, device=logits.device).expand_as(logits)
        return logits.double().softmax(dim=-1), ids
    logits, ids = logits.topk(count, dim=-1)  # (B, V) -> (B, K), likeliest first
    probabilities = logits.double().softmax(dim=-1)
    if options.top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    # By id: in order of likelihood, two almost equal tokens could change places with the rounding
    # of another batch size, and the same random number would mean the other.
    ids, order = ids.sort(dim=-1)
    return probabilities.gather(1, order), ids


def sample_token(logits: Tensor, uniforms: Tensor, options: GenerateOptions) -> Tensor:
    """One token for each row, by inverting the distribution at the row's random number.

    Shapes: logits (B, V) float32, uniforms (B,) in [0, 1) -> (B,).
    """
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, ids = filter_logits(logits, options)
    reached = probabilities.cumsum(dim=-1)
    wanted = uniforms[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, wanted, right=True)
    # Rounding may put the largest random numbers past the end; the last likely token is meant.
    last = reached.argmax(dim=-1, keepdim=True)
    return ids.gather(1, torch.minimum(place, last))[:, 0]


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Nats that the model itself, before any option, gives the tokens. (B, V), (B,) -> (B,)."""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
