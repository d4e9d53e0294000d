"""Chooses the validation documents: by hash, the first ones, the source's, or a tail.

The rule is decided once, from the whole source and the options. Then it is applied to each document
independently.
"""

import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal

from data_prep.planning.source_plan import rounded
from data_prep.sources.file_source import DocumentSource, Unit
from data_prep.sources.records import BadRecord, Document
from data_prep.tokenizer import Tokenizer

SplitKind = Literal["hash", "first", "tail", "given"]
SplitChoice = SplitKind | Literal["auto"]

FEW_DOCUMENTS = 200  # with a twentieth of fewer, a split by hash may leave one side without any

_MAX_DEFAULT_VAL_TOKENS = 10_000_000
_DEFAULT_VAL_SHARE = 20  # one token in twenty, if that is less

_IGNORED = (string.whitespace + string.punctuation).encode("ascii")
_LOWER = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())


def text_hash(text: str | bytes) -> int:
    """64-bit hash of the text, ignoring the case, whitespace and punctuation of ASCII.

    Copies of a document that differ only in these are on the same side of the split. The hash is
    part of the format: another normalisation would be another format version.
    """
    utf8 = text.encode() if isinstance(text, str) else text
    normalised = utf8.translate(_LOWER, _IGNORED)
    return int.from_bytes(blake2b(normalised, digest_size=8).digest(), "little")


def resolved_split(choice: SplitChoice, documents: int) -> SplitKind:
    """The kind of split that is meant for a source with this number of documents."""
    if choice == "auto":
        return "tail" if documents < FEW_DOCUMENTS else "hash"
    return choice


def without_tail(text: bytes, fraction: float) -> tuple[bytes, bytes]:
    """A text without this fraction of its characters at the end, and that end."""
    characters = text.decode()  # cut between characters, not inside one
    cut = int((1 - fraction) * len(characters))
    return characters[:cut].encode(), characters[cut:].encode()


@dataclass(frozen=True)
class SplitRule:
    """The rule for one source. Each kind uses the fields marked with its name; the others are 0."""

    split: SplitKind
    val_tokens: int = 0
    """Target number of tokens (hash, first)."""
    threshold: int = 0
    """Documents with a smaller text hash are validation (hash)."""
    val_rows: int = 0
    """The first N documents of the source, including empty ones, are validation (first)."""
    val_fraction: float = 0.0
    """This fraction of the text's characters, at its end, is validation (tail)."""
    val_files: tuple[int, ...] = ()
    """All documents of these files of the source are validation (given)."""

    def parts(
        self, ordinal: int, file: int, text: bytes, hashed: int
    ) -> Iterator[tuple[Literal["train", "val"], bytes]]:
        """The document as one text (UTF-8) of one split, or two texts (tail).

        `ordinal` and `file` are its numbers in the source, and `hashed` is its text hash.
        """
        if self.split == "tail":
            head, tail = without_tail(text, self.val_fraction)
            yield "train", head
            yield "val", tail
        elif self.split == "first":
            yield ("val" if ordinal < self.val_rows else "train"), text
        elif self.split == "given":
            yield ("val" if file in self.val_files else "train"), text
        else:
            yield ("val" if hashed < self.threshold else "train"), text

    def effect_on(self, unit: Unit) -> list[Any]:
        """All of the rule that decides how this unit is split."""
        first = max(0, min(unit.documents, self.val_rows - unit.first_document))
        given = [span.file in self.val_files for span in unit.spans]
        of_kind = {"hash": self.threshold, "first": first, "tail": self.val_fraction}
        return [self.split, of_kind.get(self.split, given)]

    def needed_at_once(self, unit: Unit) -> list[Any]:
        """The same, without a threshold: by another one a unit can be divided again."""
        return [self.split] if self.split == "hash" else self.effect_on(unit)

    @property
    def expects_validation(self) -> bool:
        """Whether a data set without validation documents is an error."""
        return self.split in ("tail", "given") or self.val_tokens > 0

    def as_json(self) -> dict[str, Any]:
        """The rule as it is in the manifest."""
        return {**asdict(self), "val_files": list(self.val_files)}


def decide_split(
    choice: SplitChoice,
    val_tokens: int | None,
    val_fraction: float,
    source: DocumentSource,
    units: list[Unit],
    tokenizer: Tokenizer,
    wait: Callable[[Unit], None],
) -> SplitRule:
    """Choose the rule for this source.

    `val_tokens` defaults to 10,000,000 or a twentieth of the source, whichever is less. `wait`
    returns when a unit can be read.
    Raises: ValueError if the source is too small.
    """
    documents = sum(unit.documents for unit in units)
    kind = resolved_split(choice, documents)
    if kind == "given":
        return SplitRule("given", val_files=_validation_files(source))
    if kind == "tail":
        if documents != 1 and choice == "tail":
            raise ValueError(
                f"split=tail cuts one document in two, but the source has {documents} documents; "
                "use --split hash or --split first"
            )
        return SplitRule("tail", val_fraction=val_fraction)
    estimate = max(documents, sum(unit.tokens for unit in units))
    by_share = val_tokens is None and estimate // _DEFAULT_VAL_SHARE <= _MAX_DEFAULT_VAL_TOKENS
    if val_tokens is None:
        val_tokens = min(_MAX_DEFAULT_VAL_TOKENS, estimate // _DEFAULT_VAL_SHARE)
    if val_tokens >= estimate and val_tokens > 0:
        raise ValueError(
            f"val_tokens={val_tokens} is not less than the about {estimate} tokens of the source; "
            f"try --val-tokens {estimate // _DEFAULT_VAL_SHARE}"
        )
    if kind == "first":
        rows = _rows_for(val_tokens, _documents(source, units, wait), tokenizer)
        return SplitRule("first", val_tokens, val_rows=rows)
    share = rounded(val_tokens / estimate)
    if by_share and val_tokens:
        share = 1 / _DEFAULT_VAL_SHARE
    # The hash is uniform in [0, 2**64), so this share of the documents is below the threshold.
    return SplitRule("hash", val_tokens, threshold=min(int(share * 2**64), 2**64 - 1))


def _validation_files(source: DocumentSource) -> tuple[int, ...]:
    patterns = source.settings().get("validation", ())
    files = source.identity().files
    found = tuple(
        number
        for number, file in enumerate(files)
        if any(fnmatchcase(file.name, pattern) for pattern in patterns)
    )
    if not found:
        raise ValueError(
            f"split=given, but the source {source.identity().id} does not say which of its "
            f"{len(files)} files are validation; use --split hash"
        )
    return found


def _rows_for(val_tokens: int, documents: Iterable[Document], tokenizer: Tokenizer) -> int:
    """How many of the first documents it takes to reach `val_tokens` tokens."""
    tokens = rows = 0
    for document in documents:
        if tokens >= val_tokens:
            break
        rows += 1
        if document.text:
            tokens += 1 + len(tokenizer.encode_to_numpy(document.text.decode()))
    return rows


def _documents(
    source: DocumentSource, units: list[Unit], wait: Callable[[Unit], None]
) -> Iterator[Document]:
    for unit in units:
        wait(unit)
        for record in islice(source.records(unit), unit.documents):
            bad = isinstance(record, BadRecord)  # it takes part as an empty document
            yield Document(record.file, record.row, b"") if bad else record
