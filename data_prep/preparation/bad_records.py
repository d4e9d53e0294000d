"""Bad records: left out up to `--skip-bad N`, counted, and named in the manifest."""

from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.dataset.manifest import BadEntry, SourceFile
from data_prep.sources.file_source import DocumentSource, Unit
from data_prep.sources.records import BadRecord, Document
from data_prep.tokenizer import Tokenizer

_NAMED = 100  # in the manifest
_REASON_CHARACTERS = 200
_REFUSABLE_BYTES = 500_000  # tiktoken refuses no shorter text
_CURES = "list all with --check, or leave them out with --skip-bad N"


@dataclass(frozen=True)
class BadInUnit:
    """A record that a unit left out; `file` counts in the unit's own files."""

    file: int
    row: int
    place: str
    reason: str


class TooManyBadRecords(ValueError):
    """There are more bad records than may be left out."""

    def __init__(self, record: object, allowed: int) -> None:
        super().__init__(record, allowed)
        self.record = record
        self.allowed = allowed

    def __str__(self) -> str:
        if not self.allowed:
            return f"{self.record}; {_CURES}"
        return f"{self.record}; --skip-bad {self.allowed} allows no more; list all with --check"


def bad_in_unit(record: BadRecord, files: list[int]) -> BadInUnit:
    """The record as it is kept, for a unit of these files."""
    reason = record.reason[:_REASON_CHARACTERS]
    return BadInUnit(files.index(record.file), record.row, record.place, reason)


def refused_text(
    record: Document | BadRecord, source: DocumentSource, tokenizer: Tokenizer
) -> BadRecord | None:
    """Why the tokenizer cannot encode this document; None if it can."""
    if isinstance(record, BadRecord) or len(record.text) < _REFUSABLE_BYTES:
        return None
    why = tokenizer.refuses(record.text.decode())
    if why is None:
        return None
    name = source.identity().files[record.file].name
    reason = f"tokenizer {tokenizer.name} cannot encode it ({why}); shorten its runs of whitespace"
    return BadRecord(name, record.row, f"row {record.row}", reason, record.file)


class BadRecordCount:
    """The bad records of the units that are finished, against the number that is allowed."""

    def __init__(self, files: tuple[SourceFile, ...], allowed: int) -> None:
        self._files = files
        self._allowed = allowed
        self._found: list[tuple[int, int, BadEntry]] = []

    def add(self, unit: Unit, bad: Iterable[BadInUnit]) -> None:
        """Count those of a finished unit. Raises: TooManyBadRecords."""
        for record in bad:
            number = unit.spans[record.file].file
            entry = BadEntry(self._files[number].name, record.row, record.place, record.reason)
            self._found.append((number, record.row, entry))
        if len(self._found) > self._allowed:
            first_too_many = self._sorted()[self._allowed]
            sentence = f"{first_too_many.file}, {first_too_many.place}: {first_too_many.reason}"
            raise TooManyBadRecords(sentence, self._allowed)

    def _sorted(self) -> list[BadEntry]:
        return [entry for *_, entry in sorted(self._found, key=lambda found: found[:2])]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._found)

    def first(self) -> tuple[BadEntry, ...]:
        """The first ones, in the order of the source."""
        return tuple(self._sorted()[:_NAMED])
