"""What a run folder records of its training data: seed, windows of each step, data set.

It is read from config.json, starts.jsonl and metrics.jsonl, also while the run is still writing
them.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_prep.order.skipped_windows import Skips, parse_skips
from data_prep.order.training_data import recorded_places
from data_prep.order.weights import WeightChange, WeightStart, weight_changes
from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE, step_of
from storage.json_lines import read_every_line
from storage.ownership.run_identity import identity_of
from storage.run_folder import RunFolder

_T = TypeVar("_T")
# What reading a damaged line or file raises.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
_LARGEST_NUMBER = 1 << 40  # of a step or a window; 64 bits must hold the place of a token


@dataclass(frozen=True)
class StepRecord:
    """The metric line of one step: the windows it read and the digest of their tokens."""

    step: int
    first_window: int
    windows: int
    digest: str
    skipped: bool
    """Its update was not applied. It has read its windows all the same."""
    shares: tuple[float, ...] = ()
    """What the line says of the sources of a mixture, in their order: their shares of the step."""
    epochs: tuple[float, ...] = ()
    """How often the line says that each of them had been read then."""

    @property
    def stop_window(self) -> int:
        """The first window after this step's."""
        return self.first_window + self.windows


@dataclass(frozen=True)
class _BatchSettings:
    """The settings that decide which windows a step reads, given where the step before ended."""

    windows: int
    """Windows of a step."""
    skips: Skips
    """Ranges of windows that are left out."""
    changes: tuple[WeightChange, ...] = ()
    """The changes of a mixture's weights."""


@dataclass(frozen=True)
class RunRecord:
    """A run as recorded in its folder."""

    folder: Path
    seed: int
    context_length: int
    windows: int
    """Windows of a step, by the configuration of the last start."""
    data_fingerprint: str
    steps: tuple[StepRecord, ...]
    discarded: tuple[StepRecord, ...]
    """Steps whose result was lost in a stop. They were done again later."""
    skips: Skips = ()
    """Ranges of windows that are left out, by the configuration of the last start."""
    earlier: tuple[tuple[int, _BatchSettings], ...] = ()
    """Settings that were replaced, oldest first, each with the step before which they applied."""
    done: int = 0
    """Steps that the run has surely done: those of its newest checkpoint, or all if it finished."""
    damaged_lines: tuple[int, ...] = ()
    """Numbers of the lines of metrics.jsonl from which no step can be read."""
    places: tuple[Path, ...] = ()
    """The data sets as --data named them, with the weights of a mixture."""
    changes: tuple[WeightChange, ...] = ()
    """The changes of a mixture's weights, by the configuration of the last start."""
    begun: tuple[WeightStart, ...] = ()
    """Those that the newest checkpoint has read, as it says."""

    def settings_at(self, step: int) -> _BatchSettings:
        """The settings in force when a step was done (the last time, if it was done again)."""
        now = _BatchSettings(self.windows, self.skips, self.changes)
        return next((settings for stop, settings in self.earlier if step < stop), now)

    def steps_between(self, first: int, stop: int | None) -> tuple[StepRecord, ...]:
        """The steps from `first` up to, not including, `stop`; perhaps none."""
        return tuple(s for s in self.steps if first <= s.step and (stop is None or s.step < stop))

    def steps_in(self, steps: str | None) -> tuple[StepRecord, ...]:
        """The steps `a:b`: from a up to, not including, b; either may be left out.

        Raises: ValueError if there are none.
        """
        found = self.steps_between(*parse_range(steps))
        if not found:
            asked = f"--steps {steps}: " if steps else ""
            raise ValueError(f"{asked}{self.folder} has no such step, only {self._extent()}")
        return found

    def step(self, number: int) -> StepRecord:
        """One step. Raises: ValueError if it was not done."""
        for found in self.steps:
            if found.step == number:
                return found
        raise ValueError(f"--step {number}: {self.folder} has no such step, only {self._extent()}")

    def _extent(self) -> str:
        return f"{self.steps[0].step} to {self.steps[-1].step}" if self.steps else "none at all"


def parse_range(steps: str | None) -> tuple[int, int | None]:
    """First and stop of `a:b`. Raises: ValueError for anything else."""
    if steps is None:
        return 0, None
    first, colon, stop = steps.partition(":")
    if not colon or not all(part == "" or part.isdigit() for part in (first, stop)):
        raise ValueError(f"--steps {steps} is no range; write it like 100:200, 100: or :200")
    return int(first or 0), int(stop) if stop else None


def read_run(folder: Path) -> RunRecord:
    """The record of the run in `folder`.

    A damaged line gives no step: the gap shows it. metrics.discarded.jsonl may hold some, whose
    steps were done again. starts.jsonl may have lost a start; if that start changed the batch, the
    steps show it.
    Raises: ValueError if the folder is no run.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise ValueError(f"{folder} is no run folder (no {run.config.name}); name one like runs/x")
    content = read_json(run.config)
    run.identity = identity_of(content)  # so that a checkpoint of another run does not count
    done = _steps_done(run)  # before the lines: a live run writes a line before its checkpoint
    steps, damaged = _parsed_lines(run.metrics, _step)
    added, begun = _newest_position(run, steps[-1].step if steps else -1)
    steps += added
    discarded, _ = _parsed_lines(run.discarded_metrics, _step)
    try:
        config = content["config"]
        length = int(config["context_length"])
        now = _batch_settings(config, length)
        return RunRecord(
            folder=folder,
            seed=_seed(config),
            context_length=length,
            windows=now.windows,
            data_fingerprint=str(content["data_fingerprint"]),
            steps=tuple(steps),
            discarded=tuple(discarded),
            skips=now.skips,
            earlier=_earlier_settings(run.starts, config, length),
            done=done,
            damaged_lines=tuple(damaged),
            places=_places(config),
            changes=now.changes,
            begun=tuple(begun),
        )
    except KeyError as error:
        raise ValueError(f"{run.config} lacks {error}; it is not a run of this program") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{run.config} is damaged ({error}); restore it from a copy of the run folder"
        ) from error


def _steps_done(run: RunFolder) -> int:
    """The steps of the newest checkpoint, or those of the whole run if it says that it finished."""
    done = next(map(step_of, run.all_checkpoints()), 0)
    with suppress(ValueError, OSError):  # the status is damaged, and only reports
        status = run.read_status()
        if isinstance(status, dict) and status.get("state") == "finished":
            step = status.get("step")
            done = max(done, step if isinstance(step, int) else 0)
    return done


def _seed(config: dict[str, Any]) -> int:
    seed = int(config["seed"])
    if not 0 <= seed < 2**64:
        raise ValueError("its seed is none that a run can have")
    return seed


def _places(config: dict[str, Any]) -> tuple[Path, ...]:
    return recorded_places(config["data"]) if "data" in config else ()


def _newest_position(run: RunFolder, last: int) -> tuple[list[StepRecord], list[WeightStart]]:
    """What only the newest checkpoint has: steps after `last`, and the changes of weights so far.

    Rank 0 died before it wrote the lines of these steps; the next start adds them. No start follows
    a finished run, so that has none.
    """
    found: list[StepRecord] = []
    begun: list[WeightStart] = []
    with suppress(*_DAMAGE, OSError):
        newest = next(iter(run.all_checkpoints()), None)
        if newest is not None:
            state = read_json(newest / STATE_FILE)
            begun += [WeightStart.from_json(start) for start in state.get("mixture") or ()]
            for line in () if run.is_finished() else state["lines"]:
                step = _step(line)
                if step is not None and step.step == last + 1 + len(found):
                    found.append(step)
    return found, begun


def _batch_settings(config: dict[str, Any], length: int) -> _BatchSettings:
    skips = parse_skips(config.get("skip_windows") or ())
    windows = int(config["batch_tokens"]) // length if length > 0 else 0
    if windows < 1:
        raise ValueError(f"batch_tokens={config['batch_tokens']} are no windows of {length} tokens")
    words = config.get("data_weights_at") or ()
    changes = weight_changes(words, len(_places(config))) if words else ()
    return _BatchSettings(windows, skips, changes)


def _earlier_settings(
    starts: Path, config: dict[str, Any], length: int
) -> tuple[tuple[int, _BatchSettings], ...]:
    """The settings before each change, found by undoing the recorded changes from the last start.

    The steps of a start end where a later start began: a run that went back has replaced them.
    """
    found: list[tuple[int, _BatchSettings]] = []
    for step, replaced in reversed(_parsed_lines(starts, _start)[0]):
        config = config | replaced
        stop = min(step, found[-1][0]) if found else step
        found.append((stop, _batch_settings(config, length)))
    return tuple(reversed(found))


def _start(line: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The step at which a start began, and the settings that it replaced."""
    replaced = {change["key"]: change["before"] for change in line.get("changed", ())}
    return int(line["started_at_step"]), replaced


def _parsed_lines(
    path: Path, parse: Callable[[dict[str, Any]], _T | None]
) -> tuple[list[_T], list[int]]:
    """`parse` of each line where it is not None, and the numbers of the damaged lines.

    A last line without its end is not damaged: the run is writing it, or was killed while it did.
    """
    found, damaged = [], []
    lines = read_every_line(path)
    for number, line in enumerate(lines, start=1):
        try:
            if line is None:
                raise ValueError("not a JSON object")
            value = parse(line)
        except _DAMAGE:
            if number < len(lines):
                damaged.append(number)
        else:
            if value is not None:
                found.append(value)
    return found, damaged


def _step(line: dict[str, Any]) -> StepRecord | None:
    if "data/digest" not in line:  # the last line of a finished run belongs to no step
        return None
    numbers = [int(line[key]) for key in ("step", "data/first_window", "data/windows")]
    if not all(0 <= number <= _LARGEST_NUMBER for number in numbers):
        raise ValueError(f"{numbers} cannot be a step and its windows")
    of_sources = [
        (key, line[key]) for key in line if key.startswith("data/") and key.count("/") > 1
    ]
    return StepRecord(
        *numbers,
        digest=str(line["data/digest"]),
        skipped=bool(line.get("train/skipped", 0)),
        shares=tuple(float(value) for key, value in of_sources if key.endswith("/share")),
        epochs=tuple(float(value) for key, value in of_sources if key.endswith("/epochs")),
    )
