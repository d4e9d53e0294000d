"""What one file of a source holds: its pieces, and their tokens estimated from a sample.

Parts of the file at equal distances are read and tokenized, a few megabytes at most. The plan
follows from the file, the tokenizer and the size of pieces, and from no other file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from data_prep.sources.file_source import DocumentSource, Span, Unit
from data_prep.sources.pieces import Piece
from data_prep.sources.records import BadRecord, Document
from data_prep.tokenizer import Tokenizer

_FINE_BYTES = 1 << 13  # a part of a text file
_MOST_SAMPLES = 128  # beyond these, every other one is dropped
_SURELY_TOKENIZED = 8  # documents of a sample
_TOKENIZED_SHARE = 8  # and an eighth of the bytes of its others
_SLICE_BYTES = 1 << 12  # of a long document, three slices are tokenized
_MOST_TEXT = 1 << 23  # bytes that are read of a file for its samples
_DICTIONARY = 1.25  # text larger than its column, times this, is kept once in a dictionary


@dataclass(frozen=True)
class FilePlan:
    """The pieces of a file in order, and the estimated content of one unit of their size."""

    pieces: tuple[Piece, ...]
    tokens_per_size: float | None
    """Tokens, with the end-of-text of each document; None if the file was not sampled."""
    text_per_size: float | None
    """Bytes of text."""

    @property
    def size(self) -> int:
        """The size of all pieces."""
        return sum(piece.text_bytes for piece in self.pieces)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        pieces = [[p.start, p.stop, p.rows, p.text_bytes] for p in self.pieces]
        rates = {"tokens_per_size": self.tokens_per_size, "text_per_size": self.text_per_size}
        return {"pieces": pieces, **rates}


def file_plan_from_json(content: dict[str, Any]) -> FilePlan:
    """The plan that `as_json` returned. Raises: KeyError or TypeError for anything else."""
    if not all(type(number) is int for piece in content["pieces"] for number in piece):
        raise TypeError("a piece is four integers")
    pieces = tuple(Piece(*piece) for piece in content["pieces"])
    return FilePlan(pieces, content["tokens_per_size"], content["text_per_size"])


@dataclass(frozen=True)
class _Sample:
    """A part of the file in which marks lie, from `first` to `last`."""

    piece: Piece
    first_row: int
    first: int
    last: int

    @property
    def weight(self) -> int:
        return self.last - self.first + 1


class _Marks:
    """Chooses the parts of a file in which marks at equal distances lie."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._offset = distance // 2  # of the first mark
        self._position = 0
        self._chosen: list[_Sample] = []
        self._longest: _Sample | None = None

    @property
    def chosen(self) -> list[_Sample]:
        """The chosen parts, or the longest part of a file that is shorter than expected."""
        return self._chosen or [part for part in [self._longest] if part is not None]

    def pass_over(self, piece: Piece, first_row: int) -> None:
        """Choose the next part of the file, or not."""
        first = self._marks_before(self._position)
        self._position += piece.text_bytes
        last = self._marks_before(self._position) - 1
        part = _Sample(piece, first_row, first, last)
        if last >= first:
            self._chosen.append(part)
        elif self._longest is None or self._longest.piece.text_bytes < piece.text_bytes:
            self._longest = replace(part, last=first)
        if len(self._chosen) > _MOST_SAMPLES:
            self._drop_every_other_mark()

    def _marks_before(self, position: int) -> int:
        return max(0, -((self._offset - position) // self._distance))

    def _drop_every_other_mark(self) -> None:
        halved = [replace(s, first=s.first // 2, last=(s.last - 1) // 2) for s in self._chosen]
        self._chosen = [sample for sample in halved if sample.last >= sample.first]
        self._offset += self._distance
        self._distance *= 2


def plan_file(
    source: DocumentSource,
    number: int,
    piece_bytes: int,
    tokenizer: Tokenizer,
    sampled: bool = True,
    progress: Callable[[int], None] = lambda size: None,
) -> FilePlan:
    """Cut a file into pieces of about `piece_bytes`, and estimate what they hold.

    `progress` gets the size of each part that was passed.
    """
    # Not of the size on disk: a compressed file has the plan of the plain one.
    fine_bytes = min(_FINE_BYTES, piece_bytes)
    marks = _Marks(fine_bytes)
    pieces: list[Piece] = []
    row = 0
    for fine in source.pieces(number, fine_bytes):
        marks.pass_over(fine, row)
        row += fine.rows
        if pieces and pieces[-1].text_bytes < piece_bytes:
            pieces[-1] = _joined(pieces[-1], fine)
        else:
            pieces.append(fine)
        progress(fine.text_bytes)
    if not (pieces and sampled and source.is_readable(number)):
        return FilePlan(tuple(pieces), None, None)
    most_text = _MOST_TEXT // len(marks.chosen)
    return _with_rates(
        pieces,
        marks.chosen,
        [
            _content(_records(source, number, sample), sample.piece.rows, tokenizer, most_text)
            for sample in marks.chosen
        ],
    )


def _with_rates(
    pieces: list[Piece], samples: list[_Sample], contents: list[tuple[float, float]]
) -> FilePlan:
    """The plan, from the tokens and bytes of text that each sample has."""
    sizes = [sample.piece.text_bytes for sample in samples]
    if sum(text for _, text in contents) > _DICTIONARY * sum(sizes):
        pieces = [replace(piece, text_bytes=piece.rows) for piece in pieces]
        sizes = [sample.piece.rows for sample in samples]
    weights = [sample.weight / max(1, size) for sample, size in zip(samples, sizes, strict=True)]
    # A large part has more marks. So the mean of the rates, each as often as its part has marks, is
    # the rate of the whole file.
    marks = sum(sample.weight for sample in samples)
    tokens = sum(w * found for w, (found, _) in zip(weights, contents, strict=True)) / marks
    text = sum(w * found for w, (_, found) in zip(weights, contents, strict=True)) / marks
    # If all that was read is bad or empty, the file counts as one that was not sampled.
    return FilePlan(tuple(pieces), tokens or None, text or None)


def _joined(before: Piece, after: Piece) -> Piece:
    rows, size = before.rows + after.rows, before.text_bytes + after.text_bytes
    return Piece(before.start, after.stop, rows, size)


def _records(
    source: DocumentSource, number: int, sample: _Sample
) -> Iterator[Document | BadRecord]:
    piece = sample.piece
    span = Span(number, piece.start, piece.stop, sample.first_row, piece.rows)
    return source.records(Unit((span,), 0, piece.rows, piece.text_bytes))


def _content(
    records: Iterable[Document | BadRecord], rows: int, tokenizer: Tokenizer, most_text: int
) -> tuple[float, float]:
    """The tokens and the bytes of text of `rows` records, from the first ones."""
    text = read = documents = sample_text = 0
    sample_tokens = 0.0
    for record in records:
        read += 1
        found = b"" if isinstance(record, BadRecord) else record.text
        text += len(found)
        documents += bool(found)
        if found and (documents <= _SURELY_TOKENIZED or sample_text < text // _TOKENIZED_SHARE):
            sample_text += len(found)
            sample_tokens += _tokens(found, tokenizer)
        if text > most_text:
            break
    scale = rows / max(1, read)
    tokens = sample_tokens * text / max(1, sample_text) + documents
    return tokens * scale, text * scale


def _tokens(text: bytes, tokenizer: Tokenizer) -> float:
    """How many tokens a text has; of a long one, estimated from three slices."""
    if len(text) > 4 * _SLICE_BYTES:
        middle = (len(text) - _SLICE_BYTES) // 2
        starts = (0, middle, len(text) - _SLICE_BYTES)
        slices = [text[start : start + _SLICE_BYTES] for start in starts]
    else:
        slices = [text]
    texts = [part.decode(errors="ignore") for part in slices]
    found = sum(len(tokenizer.encode_to_numpy(part)) for part in texts)
    return found * len(text) / sum(map(len, slices))
