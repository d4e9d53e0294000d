"""From a step to its documents and back: what `lookup.py` and `verify.py` tell of a run.

Tokens are counted where they are read: window w reads the tokens [wT, wT + T) of the stream (and
predicts one further), so every token belongs to exactly one window.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from data_prep.audit.run_record import RunRecord, StepRecord, gaps_and_overlaps
from data_prep.dataset.shards import DataSet
from data_prep.order.training_stream import StreamPieces, TrainingStream


@dataclass(frozen=True)
class Share:
    """What one step read of one document."""

    document: int
    epoch: int
    source: str
    row: int
    first_token: int
    """First token read, counted from the document's end-of-text, which is 0."""
    tokens: int
    document_tokens: int
    text: str
    """Beginning of what was read."""


@dataclass(frozen=True)
class Occurrence:
    """One epoch's reading of one document by a run."""

    epoch: int
    first_window: int
    last_window: int
    first_step: int
    last_step: int
    tokens: int
    """Tokens of the document that these steps read."""


class Tracer:
    """Names the origin of training documents, and follows them through a run."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self.shards = data.split("train")
        self.tokenizer = data.tokenizer()
        self._places = list(self.shards.source_places())
        self._firsts = [0, *accumulate(len(places) for places in self._places)]

    def source(self, document: int) -> tuple[str, int]:
        """The file and the row in it that a document came from."""
        if not 0 <= document < self.shards.documents:
            raise ValueError(
                f"document {document} is not one of the {self.shards.documents} of training, from 0"
            )
        shard = bisect_right(self._firsts, document) - 1
        file, row = self._places[shard][document - self._firsts[shard]].tolist()
        return self.data.manifest.source.files[file].name, row

    def document_from(self, place: str) -> int:
        """The training document of `FILE:ROW`. Raises: ValueError if there is none."""
        name, _, row = place.rpartition(":")
        files = [f.name for f in self.data.manifest.source.files]
        fitting = [i for i, file in enumerate(files) if file == name or file.endswith("/" + name)]
        if len(fitting) != 1 or not row.isdigit():
            raise ValueError(
                f"--source {place}: FILE:ROW with one of the {len(files)} source files, such as "
                f"{files[0]}:0"
            )
        for first, places in zip(self._firsts, self._places, strict=False):
            hits = np.flatnonzero((places[:, 0] == fitting[0]) & (places[:, 1] == int(row)))
            if len(hits):
                return first + int(hits[0])
        raise ValueError(
            f"--source {place} is no training document: it is empty, held out for validation, or "
            "beyond the file's end"
        )

    def documents_of(self, run: RunRecord, step: StepRecord, characters: int) -> list[Share]:
        """Everything that a step read, in the order of the stream."""
        stream, length = TrainingStream(self.shards, run.seed), run.context_length
        return [
            share
            for piece in stream.pieces(step.first_window * length, step.windows * length)
            for share in self._shares(piece, characters)
        ]

    def _shares(self, piece: StreamPieces, characters: int) -> list[Share]:
        starts = self.shards.document_starts(piece.documents) + piece.offsets
        columns = (piece.documents, piece.offsets, piece.counts, starts)
        shares = []
        for document, offset, count, start in zip(*(c.tolist() for c in columns), strict=True):
            opened = offset == 0  # end-of-text itself is no text
            ids = self.shards.read(start + opened, min(count - opened, characters))
            text = self.tokenizer.decode(ids.tolist())[:characters]
            size = int(self.shards.lengths[document])
            place = self.source(document)
            shares.append(Share(document, piece.epoch, *place, offset, count, size, text))
        return shares

    def occurrences(self, run: RunRecord, document: int) -> list[Occurrence]:
        """When a run read a document: once an epoch."""
        self.source(document)
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
                found.append(Occurrence(epoch, *windows, *steps, int(overlap[hit].sum())))
        return found

    def _epochs(self, stops: np.ndarray) -> int:
        return -(-int(stops.max()) // self.shards.tokens)

    def coverage(self, run: RunRecord, steps: Sequence[StepRecord]) -> dict[str, Any]:
        """How often a range of steps read each document, and whether it left any token out."""
        stream, length = TrainingStream(self.shards, run.seed), run.context_length
        times = np.zeros(self.shards.documents, np.int64)
        in_epoch = np.zeros(self.shards.documents, np.int64)
        epochs: dict[int, dict[str, int]] = {}
        tokens = most = 0
        last = (-1, -1)
        for first, stop in _runs_of_windows(steps):
            for piece in stream.pieces(first * length, (stop - first) * length):
                if piece.epoch not in epochs:
                    most, in_epoch[:] = max(most, int(in_epoch.max())), 0
                # A document around windows that were left out is still read once.
                goes_on = last == (piece.epoch, int(piece.documents[0]))
                begun = piece.documents[1:] if goes_on else piece.documents
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
            "breaks": gaps_and_overlaps(run, tuple(steps)),
            "steps_without_update": sum(step.skipped for step in steps),
            "documents": self.shards.documents,
            "documents_seen": int((times > 0).sum()),
            "documents_by_times_seen": {n: c for n, c in enumerate(often.tolist()) if c},
            "most_times_in_one_epoch": max(most, int(in_epoch.max())),
            "epochs": epochs,
        }


def _runs_of_windows(steps: Sequence[StepRecord]) -> list[tuple[int, int]]:
    """The windows of the steps as runs without a break, first and stop."""
    runs: list[tuple[int, int]] = []
    for step in steps:
        if runs and runs[-1][1] == step.first_window:
            runs[-1] = (runs[-1][0], step.stop_window)
        else:
            runs.append((step.first_window, step.stop_window))
    return runs


def as_plain(values: Sequence[Share] | Sequence[Occurrence]) -> list[dict[str, Any]]:
    """The same for JSON."""
    return [asdict(value) for value in values]
