"""The sources of a mixture in a run: where weights change, and how far each is read."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from data_prep.order.shares import in_windows
from data_prep.order.skipped_windows import Skips, after_skips
from data_prep.order.training_data import TrainingData
from data_prep.order.weights import WeightChange, WeightStart
from data_prep.order.windows import WindowStream
from parallel.shared_errors import SharedError
from storage.metrics import Metrics
from train.batch_plan import BatchPlan
from train.checkpoints.run_position import RunPosition
from train.config import Config

_MANY_EPOCHS = 4  # up to here repeated data are nearly as good as new: arxiv.org/abs/2305.16264
log = logging.getLogger(__name__)


def weight_starts(
    changes: Sequence[WeightChange],
    begun: Sequence[WeightStart],
    step: int,
    next_window: int,
    windows: int,
    skips: Skips = (),
) -> list[WeightStart]:
    """The window of each change of weights, for a run that is before `step` at `next_window`.

    `begun` are the changes that steps before it have read; `windows` are those of a step from here
    on.
    """
    found = list(begun)
    for change in changes[len(begun) :]:
        while step < change.step:
            next_window = after_skips(next_window, windows, skips) + windows
            step += 1
            if all(stop <= next_window for _, stop in skips):  # the rest needs no counting
                next_window += (change.step - step) * windows
                step = change.step
        first = after_skips(next_window, windows, skips)
        found.append(WeightStart(change.step, first, change.weights))
    return found


def recorded_starts(position: RunPosition) -> list[WeightStart]:
    """The changes of weights that a run has read. Raises: ValueError if the record is damaged."""
    return [WeightStart.from_json(start) for start in position.mixture or ()]


def starts_of_run(
    config: Config, plan: BatchPlan, position: RunPosition | None
) -> list[WeightStart]:
    """The window of each change of weights, for a run that continues at `position`.

    Raises: ValueError on all ranks if what it has read does not follow from the configuration.
    """
    if position is None:
        return weight_starts(config.weight_changes, (), 0, 0, plan.windows, config.skips)
    begun = recorded_starts(position)
    step, changes = position.step, config.weight_changes
    if _shares(change for change in changes if change.step < step) != _shares(begun):
        was = " ".join(f"{word:g}" for c in begun for word in (c.step, *map(float, c.weights)))
        raise SharedError(
            f"data_weights_at differs before step {step}, where the run is: it has read its data "
            f"with {was or 'no change of weights'}; give the same changes up to there, and others "
            "only after it"
        )
    return weight_starts(changes, begun, step, position.next_window, plan.windows, config.skips)


def _shares(
    changes: Iterable[WeightChange | WeightStart],
) -> list[tuple[int, tuple[int, ...]]]:
    """Steps and shares, which are the same for weights 0.5 0.5 and 1 1."""
    return [(change.step, in_windows(change.weights)) for change in changes]


def _epochs_read(config: Config, data: TrainingData, steps: int) -> np.ndarray:
    """How often each source is read in the first `steps` steps. Shapes: (sources,), float64."""
    return _Reading(config, data).epochs(steps)


class _Reading:
    """How far steps from the beginning of a run get in each source. Skipped windows count too."""

    def __init__(self, config: Config, data: TrainingData) -> None:
        self._length = config.network.context_length
        self._windows = config.batch_tokens // self._length
        starts = weight_starts(config.weight_changes, (), 0, 0, self._windows)
        self._assignment = data.assignment(starts)
        self._tokens = np.array([source.tokens for source in data.sources])

    def epochs(self, steps: int) -> np.ndarray:
        """How often each source has been read then. Shapes: (sources,), float64."""
        return self._assignment.counts(steps * self._windows) * self._length / self._tokens


def steps_of_mixture(config: Config, data: TrainingData) -> int:
    """The steps of a run without --steps: as many tokens as all sources have together.

    With a limit of epochs, at most the steps that it allows.
    Raises: ValueError if it allows none.
    """
    steps = -(-data.tokens // config.batch_tokens)
    if config.data_max_epochs is None:
        return steps
    reading = _Reading(config, data)
    allowed = _most_steps(reading, config.data_max_epochs, steps, data.tokens)
    if not allowed:
        raise ValueError(
            f"data_max_epochs={config.data_max_epochs:g} allows not even one step of "
            f"batch_tokens={config.batch_tokens}; give a larger one, or smaller "
            "weights for small sources"
        )
    return allowed


def _most_steps(reading: _Reading, most: float, guess: int, limit: int) -> int:
    """The most steps in which no source is read more often than `most` times."""
    first, stop = 0, max(guess, 1)
    while reading.epochs(stop).max() <= most and stop < limit:
        first, stop = stop, 2 * stop
    while stop - first > 1:
        middle = (first + stop) // 2
        if reading.epochs(middle).max() <= most:
            first = middle
        else:
            stop = middle
    return first


def check_epochs(config: Config, data: TrainingData, steps: int) -> None:
    """Warn of sources that are read very often.

    Raises: ValueError if a source would be read more often than the limit allows.
    """
    most = config.data_max_epochs
    reading = _Reading(config, data)
    epochs = reading.epochs(steps)
    if most is None or epochs.max() <= most:
        _warn_of_repeats(data, epochs)
        return
    worst = data.sources[int(epochs.argmax())]
    allowed = _most_steps(reading, most, steps, steps)
    fewer = f"--steps {allowed} or fewer, " if allowed else ""
    raise ValueError(
        f"data_max_epochs={most:g} but {worst.data.folder} would be read {_times(epochs.max())} in "
        f"{steps} steps; give {fewer}a smaller weight for it, or a larger --data-max-epochs"
    )


def source_lines(config: Config, data: TrainingData, steps: int) -> Iterator[str]:
    """What a start says of each source: its share, its tokens, and how often it will be read.

    Then the other shares of each change of weights.
    """
    width = max(len(source.name) for source in data.sources)
    for source, times in zip(data.sources, _epochs_read(config, data, steps), strict=True):
        yield (
            f"{source.name:<{width}}  {float(source.weight):6.1%} of the windows, "
            f"{source.tokens:,} tokens, read {_times(times)} by the end"
            + (" (repeats)" if times > 1 else "")
        )
    for change in config.weight_changes:
        shares = ", ".join(f"{float(w / sum(change.weights)):.1%}" for w in change.weights)
        late = "" if change.step < steps else f" (the run ends at step {steps})"
        yield f"from step {change.step:,} on: {shares}{late}"


def _times(epochs: float) -> str:
    """How often something is read, with a figure that is not 0."""
    return f"{epochs:.2f} times" if epochs >= 0.01 or not epochs else f"{epochs:.1g} times"


def _warn_of_repeats(data: TrainingData, epochs: np.ndarray) -> None:
    """Log the sources that are read so often that they are worth less than new text."""
    for source, times in zip(data.sources, epochs.tolist(), strict=True):
        if times > _MANY_EPOCHS:
            log.warning(
                "%s will be read %.1f times: beyond about %d times, repeated text teaches less "
                "than new text; --data-max-epochs limits it",
                source.data.folder,
                times,
                _MANY_EPOCHS,
            )


def source_metrics(
    data: TrainingData, stream: WindowStream, plan: BatchPlan, metrics: Mapping[str, object]
) -> Metrics:
    """`data/NAME/share` of the step's windows, and `data/NAME/epochs` read by the step's end.

    Nothing for a run on one data set.
    """
    first = metrics.get("data/first_window")
    if not data.is_mixture or not isinstance(first, int):
        return {}
    before, after = stream.counts(first), stream.counts(first + plan.windows)
    found: Metrics = {}
    for source, own, read in zip(data.sources, after - before, after, strict=True):
        found[f"data/{source.name}/share"] = int(own) / plan.windows
        found[f"data/{source.name}/epochs"] = int(read) * plan.context_length / source.tokens
    return found
