"""The windows of a mixture: each is one of the next windows of the source whose turn it is.

Each source has its own stream, the one that it would have alone, so that all its documents are read
once before any is read twice.
"""

from collections.abc import Sequence

import numpy as np

from data_prep.order.shares import Assignment
from data_prep.order.training_stream import TrainingStream
from data_prep.order.weights import WeightStart
from data_prep.order.windows import OneSource, SourceWindows, WindowStream


class _Mixture:
    """Several sources, in the shares of an assignment."""

    def __init__(
        self,
        streams: Sequence[TrainingStream],
        assignment: Assignment,
        weight_starts: Sequence[WeightStart],
    ) -> None:
        self.streams = tuple(streams)
        self.weight_starts = tuple(weight_starts)
        self._assignment = assignment

    def by_source(self, first: int, count: int) -> Sequence[SourceWindows]:
        """See WindowStream."""
        return [
            SourceWindows(source, self.streams[source], own, len(rows), rows)
            for source, own, rows in self._assignment.by_source(first, count)
        ]

    def counts(self, window: int) -> np.ndarray:
        """See WindowStream."""
        return self._assignment.counts(window)

    def window(self, source: int, own: int) -> int | None:
        """See WindowStream."""
        return self._assignment.window(source, own)


def stream_of(
    streams: Sequence[TrainingStream],
    assignment: Assignment,
    weight_starts: Sequence[WeightStart] = (),
) -> WindowStream:
    """The windows of these sources; those of a single one are the windows of its own stream.

    `weight_starts` are the changes that the assignment follows.
    """
    if len(streams) == 1:
        return OneSource(streams[0])
    return _Mixture(streams, assignment, weight_starts)
