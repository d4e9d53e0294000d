"""Which documents a step read, and which steps read a document (for lookup.py, verify.py).

A token counts in the window that has it as an input. Window w has the inputs [wT, wT + T) of the
stream (and one more token as its last target), so every token belongs to exactly one window.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_prep.audit.run_record import RunRecord, StepRecord, gaps_and_overlaps
from data_prep.dataset.documents import Documents
from data_prep.dataset.shards import DataSet
from data_prep.order.training_stream import StreamPieces, TrainingStream


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
    """Finds the source of training documents, and the steps of a run that read them."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self.documents = Documents(data, "train")
        self.shards = self.documents.shards
        self.tokenizer = self.documents.tokenizer

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

    def documents_of(
        self, run: RunRecord, step: StepRecord, characters: int
    ) -> list[_DocumentPart]:
        """All that a step read, in the order of the stream; `characters` limits each text."""
        stream, length = TrainingStream(self.shards, run.seed), run.context_length
        return [
            part
            for pieces in stream.pieces(step.first_window * length, step.windows * length)
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
            parts.append(_DocumentPart(document, piece.epoch, *place, offset, count, size, text))
        return parts

    def occurrences(self, run: RunRecord, document: int) -> list[_Occurrence]:
        """When a run read a document: one entry for each epoch that reached it."""
        self.source(document)  # raises if there is no such document
        stream, length = TrainingStream(self.shards, run.seed), run.context_length
        if not run.steps:
            return []
        firsts = np.array([step.first_window for step in run.steps]) * length
        stops = np.array([step.stop_window for step in run.steps]) * length
        found = []
        for epoch in range(int(firsts.min()) // stream.shards.tokens, self._epochs(stops)):
            start = epoch * self.shards.tokens + stream.index(epoch).position_of(document)
            stop = start + int(self.shards.lengths[document])
            overlap = np.minimum(stops, stop) - np.maximum(firsts, start)
            hit = np.flatnonzero(overlap > 0)
            if len(hit):
                windows = (
                    max(start, int(firsts[hit].min())) // length,
                    (min(stop, int(stops[hit].max())) - 1) // length,
                )
                steps = (run.steps[hit[0]].step, run.steps[hit[-1]].step)
                found.append(_Occurrence(epoch, *windows, *steps, int(overlap[hit].sum())))
        return found

    def _epochs(self, stops: np.ndarray) -> int:
        return -(-int(stops.max()) // self.shards.tokens)

    def coverage(self, run: RunRecord, steps: Sequence[StepRecord]) -> dict[str, Any]:
        """How often a range of steps read each document, and how many tokens it left out."""
        stream, length = TrainingStream(self.shards, run.seed), run.context_length
        times = np.zeros(self.shards.documents, np.int64)
        in_epoch = np.zeros(self.shards.documents, np.int64)
        epochs: dict[int, dict[str, int]] = {}
        tokens = most = 0
        last = (-1, -1)
        for first, stop in _consecutive_windows(steps):
            for piece in stream.pieces(first * length, (stop - first) * length):
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
        span = (steps[-1].stop_window - steps[0].first_window) * length
        often = np.bincount(times)
        return {
            "first_step": steps[0].step,
            "last_step": steps[-1].step,
            "tokens": tokens,
            "tokens_dropped": span - tokens,
            "breaks": gaps_and_overlaps(run, tuple(steps), steps[0].step, steps[-1].step + 1),
            "steps_without_update": sum(step.skipped for step in steps),
            "documents": self.shards.documents,
            "documents_seen": int((times > 0).sum()),
            "documents_by_times_seen": {n: c for n, c in enumerate(often.tolist()) if c},
            "most_times_in_one_epoch": max(most, int(in_epoch.max())),
            "epochs": epochs,
        }


def _consecutive_windows(steps: Sequence[StepRecord]) -> list[tuple[int, int]]:
    """The windows of the steps as ranges without a gap, each as first and stop."""
    ranges: list[tuple[int, int]] = []
    for step in steps:
        if ranges and ranges[-1][1] == step.first_window:
            ranges[-1] = (ranges[-1][0], step.stop_window)
        else:
            ranges.append((step.first_window, step.stop_window))
    return ranges


def as_dicts(values: Sequence[_DocumentPart] | Sequence[_Occurrence]) -> list[dict[str, Any]]:
    """The values as plain dictionaries."""
    return [asdict(value) for value in values]
