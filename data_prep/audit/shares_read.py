"""The shares of a mixture that a run has read, and how far each ever was from its weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.audit.continuity import consecutive_windows
from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.order.shares import in_windows
from data_prep.order.training_data import TrainingData
from data_prep.order.training_stream import TrainingStream
from data_prep.order.weights import WeightStart
from data_prep.order.windows import WindowStream

_BLOCK = 1 << 18  # windows, or documents, that are counted at once
# Limits to what a damaged or forged line, of a window that no run reaches, can cost: seconds.
_MOST_WINDOWS = 1 << 28
_MOST_DOCUMENTS = 1 << 28
_MOST_EPOCHS = 10_000


@dataclass(frozen=True)
class _Epochs:
    """What is known of the epochs of a source."""

    begun: int
    counted: int
    """How many of them, the first ones, were looked at."""
    faulty: tuple[int, ...]
    """Those in which a document is missing, or there twice."""


@dataclass(frozen=True)
class _Stretch:
    """Windows with the same weights, up to the last one that was read."""

    first: int
    stop: int
    weights: tuple[int, ...]
    """Windows of each source in a period."""
    counts: tuple[int, ...]
    """Windows of each source that the steps read."""
    distance: float
    """The largest distance of any source from its weight's part, over all counts of windows.

    It is of the first _MOST_WINDOWS of them.
    """
    jumps: int
    """Windows that are not the next one of their source."""

    @property
    def read(self) -> int:
        """Windows of all sources that the steps read."""
        return sum(self.counts)


def read_shares(
    data: TrainingData,
    stream: WindowStream,
    starts: Sequence[WeightStart],
    steps: Sequence[StepRecord],
) -> list[_Stretch]:
    """The stretches of equal weights that the steps read, each counted window by window."""
    weights = [in_windows([source.weight for source in data.sources])]
    weights += [in_windows(start.weights) for start in starts]
    firsts = [0, *(start.first_window for start in starts)]
    end = max((step.stop_window for step in steps), default=0)
    ranges = consecutive_windows(steps)
    found = []
    for number, first in enumerate(firsts):
        stop = min([end, *firsts[number + 1 : number + 2]])
        own = [(max(first, a), min(stop, b)) for a, b in ranges]
        own = [(a, b) for a, b in own if a < b]
        if own:
            counts = sum(stream.counts(b) - stream.counts(a) for a, b in own)
            measured = _measured(stream, first, min(stop, first + _MOST_WINDOWS), weights[number])
            found.append(
                _Stretch(first, stop, weights[number], tuple(np.array(counts).tolist()), *measured)
            )
    return found


def _measured(
    stream: WindowStream, first: int, stop: int, weights: tuple[int, ...]
) -> tuple[float, int]:
    """The largest distance of a source from its part, and how many windows are not the next."""
    period, furthest, jumps = sum(weights), 0, 0
    taken = np.zeros(len(weights), np.int64)
    before = stream.counts(first)
    for begin in range(first, stop, _BLOCK):
        count = min(_BLOCK, stop - begin)
        of_source = np.zeros((len(weights), count), np.int64)
        for part in stream.by_source(begin, count):
            of_source[part.source, slice(None) if part.rows is None else part.rows] = 1
            jumps += part.count * int(part.first != before[part.source] + taken[part.source])
        counted = taken[:, None] + np.cumsum(of_source, axis=1)
        windows = np.arange(begin - first + 1, begin - first + count + 1)
        # All are whole numbers: the distance times the period.
        owed = counted * period - windows * np.array(weights, np.int64)[:, None]
        furthest = max(furthest, int(np.abs(owed).max()))
        taken = counted[:, -1]
    return furthest / period, jumps


def share_problems(
    data: TrainingData, read: Sequence[_Stretch], epochs: Sequence[_Epochs]
) -> list[str]:
    """A sentence for each stretch or epoch that is not as a mixture's must be."""
    found = []
    for stretch in read:
        where = f"windows {stretch.first} to {stretch.stop - 1}"
        if stretch.distance >= 1:
            found.append(f"{where}: a source is {stretch.distance:.2f} windows from its weight")
        if stretch.jumps:
            found.append(f"{where}: {stretch.jumps} are not the next ones of their source")
    return found + [
        f"epoch {epoch} of {source.name} does not have each of its documents once"
        for source, own in zip(data.sources, epochs, strict=True)
        for epoch in own.faulty
    ]


def shares_error(stream: WindowStream, run: RunRecord, step: StepRecord) -> str | None:
    """What is wrong with the shares and epochs in the line of a step; None if they are right."""
    if not step.shares and not step.epochs:
        return None  # of a run on one data set, which writes none
    before, after = stream.counts(step.first_window), stream.counts(step.stop_window)
    tokens = np.array([source.shards.tokens for source in stream.streams])
    pairs = (
        ("shares", step.shares, (after - before) / step.windows),
        ("epochs", step.epochs, after * run.context_length / tokens),
    )
    for what, found, expected in pairs:
        if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-9, atol=1e-9):
            said, gives = (" ".join(f"{value:.6g}" for value in row) for row in (found, expected))
            return f"step {step.step}: metrics.jsonl has the {what} {said}, the order gives {gives}"
    return None


def read_epochs(run: RunRecord, stream: WindowStream, stop: int) -> list[_Epochs]:
    """The epochs of each source that are begun before a window."""
    found = []
    for source, own in zip(stream.streams, stream.counts(stop).tolist(), strict=True):
        begun = -(-own * run.context_length // source.shards.tokens)
        counted = min(begun, _MOST_EPOCHS, 1 + _MOST_DOCUMENTS // source.shards.documents)
        faulty = [epoch for epoch in range(counted) if not _is_complete(source, epoch)]
        found.append(_Epochs(begun, counted, tuple(faulty)))
    return found


def _is_complete(stream: TrainingStream, epoch: int) -> bool:
    index, documents = stream.index(epoch), stream.shards.documents
    seen = np.zeros(documents, bool)
    for first in range(0, documents, _BLOCK):
        seen[index.documents(first, _BLOCK)] = True
    return bool(seen.all())


def share_lines(
    data: TrainingData,
    run: RunRecord,
    stream: WindowStream,
    stretches: Sequence[_Stretch],
    epochs: Sequence[_Epochs],
) -> list[str]:
    """What was read of each source, for each stretch of equal weights, and how often by its end."""
    width = max(len(source.name) for source in data.sources)
    lines = []
    for stretch in stretches:
        left_out = stretch.stop - stretch.first - stretch.read
        lines.append(
            f"windows {stretch.first} to {stretch.stop - 1}: after every one of them each source "
            f"is within {stretch.distance:.2f} windows of its weight"
            + (f" ({left_out} of them are not read by these steps)" if left_out else "")
        )
        for source, count, weight in zip(
            data.sources, stretch.counts, stretch.weights, strict=True
        ):
            lines.append(
                f"  {source.name:<{width}}  weight {weight / sum(stretch.weights):6.2%}, read "
                f"{count:,} of {stretch.read:,} windows, {count / stretch.read:.2%}"
            )
    stop = stretches[-1].stop
    read = [
        f"{source.name} {own * run.context_length / source.tokens:.2f} times"
        for source, own in zip(data.sources, stream.counts(stop).tolist(), strict=True)
    ]
    counted = sum(own.counted for own in epochs)
    complete = counted - sum(len(own.faulty) for own in epochs)
    others = sum(own.begun for own in epochs) - counted
    return [
        *lines,
        f"before window {stop}: {', '.join(read)}; {complete} of {counted} epochs begun have every "
        "document of their source once" + (f", {others} were not counted" if others else ""),
    ]
