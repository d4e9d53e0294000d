"""Which documents a step read, and which steps read a document (for lookup.py, verify.py).

A token counts in the window that has it as an input. Window w has the inputs [wT, wT + T) of the
stream (and one more token as its last target), so every token belongs to exactly one window. In a
mixture these are the windows of each source's own stream.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.audit.continuity import consecutive_windows, gaps_and_overlaps
from data_prep.audit.run_data import weight_starts_of
from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.dataset.documents import Documents
from data_prep.order.training_data import Source, TrainingData
from data_prep.order.training_stream import StreamPieces
from data_prep.order.windows import WindowStream


@dataclass(frozen=True)
class _DocumentPart:
    """The part of one document that one step read. The field names are keys of lookup's JSON."""

    document: int
    epoch: int
    source: str
    row: int
    first_token: int
    """First token read, counted from the document's end-of-text, which is 0."""
    tokens: int
    document_tokens: int
    text: str
    """Beginning of the part, decoded."""
    data: str = ""
    """Name of the source in a mixture; only there a key of the JSON."""


@dataclass(frozen=True)
class _Occurrence:
    """One reading of a document by a run: once in an epoch. The field names are JSON keys."""

    epoch: int
    first_window: int
    last_window: int
    first_step: int
    last_step: int
    tokens: int
    """Tokens of the document that these steps read."""


class Tracer:
    """Finds where training documents of a source are from, and the steps that read them."""

    def __init__(self, source: Source, run: RunRecord, stream: WindowStream, number: int) -> None:
        """`number` is that of the source in the windows of the run, `stream`."""
        self.name = source.name
        self._named = source.name if len(stream.streams) > 1 else ""
        self.data = source.data
        self.run = run
        self.documents = Documents(source.data, "train")
        self.shards = self.documents.shards
        self.tokenizer = self.documents.tokenizer
        self._number = number
        self._windows = stream
        self._stream = stream.streams[number]

    def source(self, document: int) -> tuple[str, int]:
        """The source file of a training document, and its row there."""
        return self.documents.source(document)

    def document_from(self, place: str) -> int:
        """The training document of `FILE:ROW`. Raises: ValueError if there is none."""
        name, _, row = place.rpartition(":")
        files = [f.name for f in self.data.manifest.source.files]
        matches = [i for i, file in enumerate(files) if file == name or file.endswith("/" + name)]
        if len(matches) != 1 or not row.isdigit():
            raise ValueError(
                f"--source {place}: FILE:ROW with one of the {len(files)} source files, such as "
                f"{files[0]}:0"
            )
        found = next(self.documents.rows_of(matches[0], int(row)), None)
        if found is not None:
            return found
        raise ValueError(
            f"--source {place} is no training document: it is empty, held out for validation, or "
            "beyond the file's end"
        )

    def windows_before(self, window: int) -> int:
        """How many windows before this one of the run are from this source."""
        return int(self._windows.counts(window)[self._number])

    def documents_of(self, step: StepRecord, characters: int) -> list[_DocumentPart]:
        """All that a step read of the source, in the order of its stream.

        `characters` limits each text.
        """
        length = self.run.context_length
        first = self.windows_before(step.first_window)
        count = self.windows_before(step.stop_window) - first
        return [
            part
            for pieces in self._stream.pieces(first * length, count * length)
            for part in self._parts(pieces, characters)
        ]

    def _parts(self, piece: StreamPieces, characters: int) -> list[_DocumentPart]:
        starts = self.shards.document_starts(piece.documents) + piece.offsets
        columns = (piece.documents, piece.offsets, piece.counts, starts)
        parts = []
        for document, offset, count, start in zip(*(c.tolist() for c in columns), strict=True):
            opening = offset == 0  # 1 if the part begins with end-of-text, which is no text
            # Decode no more tokens than characters: a token is rarely less than a character.
            ids = self.shards.read(start + opening, min(count - opening, characters))
            text = self.tokenizer.decode(ids.tolist())[:characters]
            size = int(self.shards.lengths[document])
            place = self.source(document)
            parts.append(
                _DocumentPart(
                    *(document, piece.epoch, *place, offset, count, size, text), data=self._named
                )
            )
        return parts

    def occurrences(self, document: int) -> list[_Occurrence]:
        """When the run read a document: one entry for each epoch that reached it."""
        self.source(document)  # raises if there is no such document
        steps, length = self.run.steps, self.run.context_length
        if not steps:
            return []
        firsts = np.array([self.windows_before(step.first_window) for step in steps]) * length
        stops = np.array([self.windows_before(step.stop_window) for step in steps]) * length
        found = []
        for epoch in self._epochs(firsts, stops):
            start = epoch * self.shards.tokens + self._stream.index(epoch).position_of(document)
            stop = start + int(self.shards.lengths[document])
            overlap = np.minimum(stops, stop) - np.maximum(firsts, start)
            hit = np.flatnonzero(overlap > 0)
            if len(hit):
                windows = (
                    self._window(max(start, int(firsts[hit].min())) // length),
                    self._window((min(stop, int(stops[hit].max())) - 1) // length),
                )
                hits = (steps[hit[0]].step, steps[hit[-1]].step)
                found.append(_Occurrence(epoch, *windows, *hits, int(overlap[hit].sum())))
        return found

    def _window(self, own: int) -> int:
        """The window of the run that is number `own` of the source."""
        found = self._windows.window(self._number, own)
        assert found is not None  # the run has read it
        return found

    def _epochs(self, firsts: np.ndarray, stops: np.ndarray) -> list[int]:
        """The epochs of which tokens [first, stop) of the stream are read, in order."""
        ends = -(-stops // self.shards.tokens)
        pairs = set(zip((firsts // self.shards.tokens).tolist(), ends.tolist(), strict=True))
        return sorted({epoch for first, stop in pairs for epoch in range(first, stop)})

    def coverage(self, steps: Sequence[StepRecord]) -> dict[str, Any]:
        """How often a range of steps read each document, and how many tokens it left out."""
        length = self.run.context_length
        times = np.zeros(self.shards.documents, np.int64)
        in_epoch = np.zeros(self.shards.documents, np.int64)
        epochs: dict[int, dict[str, int]] = {}
        tokens = most = 0
        last = (-1, -1)
        for first, stop in consecutive_windows(steps):
            first, stop = self.windows_before(first), self.windows_before(stop)
            for piece in self._stream.pieces(first * length, (stop - first) * length):
                if piece.epoch not in epochs:
                    most, in_epoch[:] = max(most, int(in_epoch.max())), 0
                # A document that continues in the next piece, or behind skipped windows inside it,
                # counts as read once.
                continued = last == (piece.epoch, int(piece.documents[0]))
                begun = piece.documents[1:] if continued else piece.documents
                last = (piece.epoch, int(piece.documents[-1]))
                epoch = epochs.setdefault(piece.epoch, {"documents": 0, "tokens": 0})
                epoch["documents"] += len(begun)
                epoch["tokens"] += int(piece.counts.sum())
                times[begun] += 1
                in_epoch[begun] += 1
                tokens += int(piece.counts.sum())
        ends = (steps[0].first_window, steps[-1].stop_window)
        first, stop = map(self.windows_before, ends)
        often = np.bincount(times)
        return {
            "first_step": steps[0].step,
            "last_step": steps[-1].step,
            "tokens": tokens,
            "tokens_dropped": (stop - first) * length - tokens,
            "breaks": gaps_and_overlaps(self.run, tuple(steps), steps[0].step, steps[-1].step + 1),
            "steps_without_update": sum(step.skipped for step in steps),
            "documents": self.shards.documents,
            "documents_seen": int((times > 0).sum()),
            "documents_by_times_seen": {n: c for n, c in enumerate(often.tolist()) if c},
            "most_times_in_one_epoch": max(most, int(in_epoch.max())),
            "epochs": epochs,
        }


def tracers_of(data: TrainingData, run: RunRecord) -> list[Tracer]:
    """A tracer for each source of a run."""
    stream = data.stream(run.seed, weight_starts_of(run))
    return [Tracer(source, run, stream, number) for number, source in enumerate(data.sources)]


def document_of(
    tracers: Sequence[Tracer], document: int | str | None, place: str | None
) -> tuple[Tracer, int]:
    """The source and number of a document, given as N, NAME:N or, in its source, FILE:ROW.

    Raises: ValueError if there is none, or several.
    """
    if place is not None:
        return _from_place(tracers, place)
    name, _, number = str(document).rpartition(":")
    chosen = [tracer for tracer in tracers if tracer.name == name]
    if not name and len(tracers) == 1:
        chosen = list(tracers)
    if not chosen or not number.removeprefix("-").isdecimal():
        names = " or ".join(tracer.name for tracer in tracers)
        raise ValueError(
            f"--document {document}: give its number"
            + (f" with the source, NAME:N with {names} as NAME" if len(tracers) > 1 else "")
        )
    return chosen[0], int(number)


def _from_place(tracers: Sequence[Tracer], place: str) -> tuple[Tracer, int]:
    found, errors = [], []
    for tracer in tracers:
        try:
            found.append((tracer, tracer.document_from(place)))
        except ValueError as error:
            if len(tracers) == 1:
                raise
            errors.append(f"{tracer.name}: {error}")
    if len(found) == 1:
        return found[0]
    if found:
        each = " or ".join(f"--document {tracer.name}:{number}" for tracer, number in found)
        raise ValueError(f"--source {place} is in {len(found)} of the sources; give {each}")
    raise ValueError(f"--source {place} is in no source of the run: {'; '.join(errors)}")


def as_dicts(values: Sequence[_DocumentPart] | Sequence[_Occurrence]) -> list[dict[str, Any]]:
    """The values as plain dictionaries."""
    return [{k: v for k, v in asdict(value).items() if k != "data" or v} for value in values]
