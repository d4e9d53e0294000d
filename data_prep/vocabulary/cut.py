"""A tokenizer of others with fewer ids, and what that costs in bytes a token."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.tokenizer import Tokenizer, named_tokenizer, tokenizer_of
from data_prep.vocabulary.measured import log_bytes_per_token
from storage.atomic import new_folder
from storage.byte_pairs import BytePairs
from storage.vocabularies.cutting import cut_byte_pairs

_MEASURED_BYTES = 1_000_000  # `tokenizers` encodes 2 MB/s, and both vocabularies are measured
log = logging.getLogger(__name__)


def cut_tokenizer(
    place: Path, end_of_text: str | None, vocab_size: int, out: Path, texts: Iterable[bytes]
) -> Tokenizer:
    """Save the first `vocab_size` ids of a tokenizer as the folder `out`, and log what they cost.

    Raises: ValueError if `out` exists, or the tokenizer cannot be cut to that size.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or move it away")
    whole = named_tokenizer(place, end_of_text)
    pairs = BytePairs(whole.name, whole.pattern, whole.ranks, whole.additions)
    cut = tokenizer_of(cut_byte_pairs(pairs, vocab_size, out.name))
    log.info(
        "%s: the first %s of the %s ids of %s; end-of-text is %d",
        *(out, f"{cut.n_vocab:,}", f"{whole.n_vocab:,}", whole.name, cut.end_of_text),
    )
    log_bytes_per_token(cut, _first(texts), "measured text", whole)
    with new_folder(out) as folder:
        cut.save(folder)
    return cut


def _first(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The first texts, up to a limit."""
    left = _MEASURED_BYTES
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
