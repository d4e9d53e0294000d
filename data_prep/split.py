"""Which documents are validation: by a hash of the text, the first ones, or the tail of the one.

Decided once from the whole source and the options, then applied to each document by itself.
"""

import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal

from data_prep.sources import Document, Source, Unit
from data_prep.tokenizer import Tokenizer, without_surrogates

SplitKind = Literal["hash", "first", "tail"]

# Bytes of English web text to a GPT-2 token: sample-10BT is 45.97 GB and 9.944e9 tokens.
BYTES_PER_TOKEN = 4.6
LARGEST_DEFAULT_VAL_TOKENS = 10_000_000
DEFAULT_VAL_SHARE = 20  # one token in twenty, where that is less

_IGNORED = (string.whitespace + string.punctuation).encode("ascii")
_LOWER = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())


def text_hash(text: str) -> int:
    """64-bit hash of the text without case, whitespace and punctuation (of ASCII).

    Copies of a document that differ only in these fall on the same side of the split. Part of the
    format: another normalisation is another format version.
    """
    normalised = text.encode().translate(_LOWER, _IGNORED)
    return int.from_bytes(blake2b(normalised, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class SplitRule:
    """The decided rule; each kind uses the fields that say so and leaves the others 0."""

    split: SplitKind
    val_tokens: int = 0
    """The target (hash, first)."""
    threshold: int = 0
    """Documents with a smaller text hash are validation (hash)."""
    val_rows: int = 0
    """This many documents of the source, empty ones counted, are validation (first)."""
    val_fraction: float = 0.0
    """This part of the text's characters, at its end, is validation (tail)."""

    def parts(self, ordinal: int, text: str) -> Iterator[tuple[Literal["train", "val"], str]]:
        """The document (number `ordinal` of the source) as one text, or two (tail)."""
        if self.split == "tail":
            cut = int((1 - self.val_fraction) * len(text))
            yield "train", text[:cut]
            yield "val", text[cut:]
        elif self.split == "first":
            yield ("val" if ordinal < self.val_rows else "train"), text
        else:
            yield ("val" if text_hash(text) < self.threshold else "train"), text

    @property
    def wants_validation(self) -> bool:
        """Whether a data set without validation documents is a mistake."""
        return self.split == "tail" or self.val_tokens > 0

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def decide_split(
    kind: SplitKind,
    val_tokens: int | None,
    val_fraction: float,
    source: Source,
    units: list[Unit],
    tokenizer: Tokenizer,
) -> SplitRule:
    """The rule for this source.

    `val_tokens` None is 10,000,000 or a twentieth of the source, whichever is less.
    Raises: ValueError if the source is too small for what is asked.
    """
    documents = sum(unit.documents for unit in units)
    if kind == "tail":
        if documents != 1:
            raise ValueError(
                f"split=tail cuts one document in two, but the source has {documents} documents; "
                "use --split hash or --split first"
            )
        return SplitRule("tail", val_fraction=val_fraction)
    text_bytes = sum(unit.text_bytes for unit in units)
    estimate = round(text_bytes / BYTES_PER_TOKEN) + documents
    if val_tokens is None:
        val_tokens = min(LARGEST_DEFAULT_VAL_TOKENS, estimate // DEFAULT_VAL_SHARE)
    if val_tokens >= estimate:
        raise ValueError(
            f"val_tokens={val_tokens} is not less than the about {estimate} tokens of the source; "
            f"try --val-tokens {estimate // DEFAULT_VAL_SHARE}"
        )
    if kind == "first":
        rows = _rows_for(val_tokens, source, units, tokenizer)
        return SplitRule("first", val_tokens, val_rows=rows)
    return SplitRule("hash", val_tokens, threshold=(val_tokens << 64) // estimate)


def _rows_for(val_tokens: int, source: Source, units: list[Unit], tokenizer: Tokenizer) -> int:
    """How many rows of the source it takes to have `val_tokens` tokens."""
    tokens = rows = 0
    for document in _documents(source, units):
        if tokens >= val_tokens:
            break
        rows += 1
        if document.text:
            tokens += 1 + len(tokenizer.encode_to_numpy(without_surrogates(document.text)))
    return rows


def _documents(source: Source, units: list[Unit]) -> Iterator[Document]:
    for unit in units:
        yield from islice(source.documents(unit), unit.documents)
