"""What a learned tokenizer reaches on text that it has not learned from, and time by phase."""

import logging
import time
from collections.abc import Iterable, Iterator

import numpy as np

from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from storage.terminal.quantities import counted

MOST_HELD_OUT = 4_000_000  # bytes; tiktoken encodes 10 MB/s
_ENOUGH = 8  # texts for a standard error
log = logging.getLogger(__name__)


class Phases:
    """Seconds of one phase after another."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """The time since the last call belongs to this phase."""
        now = time.monotonic()
        self._seconds[name] = now - self._start
        self._start = now

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())


def without_held_out(texts: Iterable[bytes], every: int, held_out: list[bytes]) -> Iterator[bytes]:
    """The texts but for every Nth one, which is added to `held_out` until this is enough."""
    held = 0
    for number, text in enumerate(texts, 1):
        if every and number % every == 0 and held < MOST_HELD_OUT:
            held_out.append(text)
            held += len(text)
        else:
            yield text


def log_bytes_per_token(
    tokenizer: Tokenizer, texts: Iterable[bytes], what: str, beside: Tokenizer | None = None
) -> None:
    """Log what a token stands for in these texts, beside another tokenizer, or GPT-2's."""
    other = beside or gpt2_tokenizer()
    rows = np.array(list(_counts(tokenizer, other, texts)), np.int64).reshape(-1, 3)
    sizes, own, others = rows.T
    if not len(rows):
        log.info("%s: none, so bytes per token are not measured", what)
        return
    log.info(
        "%s (%s bytes, %s): %s bytes per token; %s's %s ids: %s, %+.1f %% tokens against it",
        *(what, f"{sizes.sum():,}", counted(len(rows), "text"), _ratio(sizes, own)),
        *("GPT-2" if beside is None else beside.name, f"{other.n_vocab:,}"),
        *(_ratio(sizes, others), 100 * (own.sum() / others.sum() - 1)),
    )


def _counts(
    tokenizer: Tokenizer, other: Tokenizer, texts: Iterable[bytes]
) -> Iterator[tuple[int, int, int]]:
    """Bytes, tokens and the other's tokens of each text, up to a limit."""
    left = MOST_HELD_OUT
    for whole in texts:
        text = whole[:left].decode(errors="ignore")  # without half a character at the cut
        size = len(text.encode())
        left -= size
        try:
            ids = len(tokenizer.encode_to_numpy(text))
        except ValueError:  # tiktoken's regular expression fails on a million spaces
            continue
        if ids:
            yield size, ids, len(other.encode_to_numpy(text))
        if left <= 0:
            break


def _ratio(sizes: np.ndarray, tokens: np.ndarray) -> str:
    """Bytes per token with the standard error of a ratio of two sums.

    Source: Cochran, Sampling Techniques, 3rd edition, section 6.4.
    """
    ratio = sizes.sum() / tokens.sum()
    if len(sizes) < _ENOUGH:
        return f"{ratio:.3f}"
    error = np.std(sizes - ratio * tokens, ddof=1) / np.sqrt(len(sizes)) / tokens.mean()
    return f"{ratio:.3f} ± {error:.3f} (standard error)"
