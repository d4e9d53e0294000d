"""The data sets that a run read, and with which window each change of their weights began."""

from collections.abc import Sequence
from itertools import islice, pairwise, permutations, product
from pathlib import Path

from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.order.mixture_stream import stream_of
from data_prep.order.skipped_windows import after_skips
from data_prep.order.training_data import TrainingData, open_again, open_training_data
from data_prep.order.weights import (
    WeightChange,
    WeightStart,
    folders_and_weights,
    parsed_place,
)
from data_prep.order.windows import WindowStream

_MOST_ORDERS = 5040  # of the folders that are named: of 7 sources all
_MOST_HISTORIES = 64


def folders_named(places: Sequence[Path]) -> list[Path]:
    """The folders of places that may have a weight. Raises: ValueError if there is none."""
    if not places:
        raise ValueError("no data set is named; give its folder, or those of several")
    folders = [parsed_place(place).folder for place in places]
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise ValueError(f"{folder} is named twice; name each data set once")
    return folders


def open_run_data(run: RunRecord, named: Sequence[Path]) -> TrainingData:
    """The data of a run, in the folders that are named in the order of its sources.

    Raises: ValueError if they are not the run's data sets, or named with other weights.
    """
    folders_named(named)
    data = open_again(run.places, named) if run.places else open_training_data(named)
    check_run_data(run, data)
    if data.is_mixture and any(parsed_place(place).weight is not None for place in named):
        given = folders_and_weights(named)
        total = sum(place.weight for place in given)
        if [place.weight / total for place in given] != [s.weight for s in data.sources]:
            raise ValueError(
                f"{run.folder} began with the weights {_weights(data)}, other ones are named; "
                "leave them out"
            )
    return data


def check_run_data(run: RunRecord, data: TrainingData) -> None:
    """Raises: ValueError if the run was not trained on `data`, with what else may be meant."""
    if data.fingerprint == run.data_fingerprint:
        return
    folders = " ".join(str(source.data.folder) for source in data.sources)
    for order in islice(permutations(s.data for s in data.sources), _MOST_ORDERS):
        if data.over(iter(order)).fingerprint == run.data_fingerprint:
            right = " ".join(str(other.folder) for other in order)
            raise ValueError(
                f"{folders} are the data sets of {run.folder} in another order; name them as "
                f"{right}"
            )
    weighted = f" with the weights {_weights(data)} of its config.json" if data.is_mixture else ""
    cure = "name the run's own data set" + ("s" if data.is_mixture else "")
    raise ValueError(
        f"{run.folder} was trained on data {run.data_fingerprint[:16]}, but "
        f"{folders}{weighted} is {data.fingerprint[:16]}; {cure}"
    )


def _weights(data: TrainingData) -> str:
    return " ".join(f"{float(source.weight):g}" for source in data.sources)


def weight_starts_of(run: RunRecord) -> list[WeightStart]:
    """The changes of weights that the steps of a run have read, each with its first window.

    That is the first window of the line of its step, if it follows the line before; else what the
    newest checkpoint says; else what follows from the lines before.
    """
    lines = {step.step: step for step in run.steps}
    recorded = {start.step: start.first_window for start in run.begun}
    found: list[WeightStart] = []
    for change in run.changes:
        if change.step > max(lines, default=-1):
            break
        least = found[-1].first_window if found else 0
        line, before = lines.get(change.step), lines.get(change.step - 1)
        expected = _computed_start(run, change.step)
        known = [recorded.get(change.step), line and line.first_window, expected, least + 1]
        if line and line.first_window in (expected, before and before.stop_window):
            known.insert(0, line.first_window)
        first = next(window for window in known if window is not None and window > least)
        found.append(WeightStart(change.step, first, change.weights))
    return found


def _computed_start(run: RunRecord, step: int) -> int:
    """The first window of a step by the last line before it, with the settings of the step."""
    before = max((s for s in run.steps if s.step < step), key=lambda s: s.step, default=None)
    at, window = (0, 0) if before is None else (before.step + 1, before.stop_window)
    settings = run.settings_at(step)
    window += (step - at) * settings.windows
    return after_skips(window, settings.windows, settings.skips)


def start_problems(run: RunRecord, starts: Sequence[WeightStart]) -> list[str]:
    """A sentence for each change of weights of which the newest checkpoint says something else."""
    changes = {start.step: start for start in starts}
    return [
        f"weights at step {start.step}: the newest checkpoint has them from window "
        f"{start.first_window} on as {_text(start)}, the run's record gives "
        + (f"window {other.first_window} and {_text(other)}" if other else "no change there")
        for start in run.begun
        for other in [changes.get(start.step)]
        if other != start
    ]


def _text(start: WeightStart) -> str:
    return " ".join(f"{float(weight):g}" for weight in start.weights)


def discarded_streams(
    run: RunRecord, data: TrainingData, stream: WindowStream
) -> list[WindowStream]:
    """Every order of the windows that steps which were lost and done again may have read.

    A start after them may have changed the weights of a step that the run had not reached then.
    """
    histories = {run.changes: None} | {old.changes: None for _, old in run.earlier}
    found: dict[tuple[WeightStart, ...], None] = {}
    for changes in histories:
        found |= dict.fromkeys(_possible_starts(changes, (*run.steps, *run.discarded)))
    return [stream_of(stream.streams, data.assignment(starts)) for starts in found]


def _possible_starts(
    changes: Sequence[WeightChange], steps: Sequence[StepRecord]
) -> list[tuple[WeightStart, ...]]:
    """The changes with each of the windows at which a line says that its step began."""
    firsts: list[list[WeightStart]] = []
    for change in changes:
        windows = sorted({s.first_window for s in steps if s.step == change.step})
        if not windows:
            break
        firsts.append([WeightStart(change.step, first, change.weights) for first in windows])
    return [
        starts
        for starts in islice(product(*firsts), _MOST_HISTORIES)
        if all(a < b for a, b in pairwise([0, *(start.first_window for start in starts)]))
    ]
