"""What a run folder says it was fed: seed, window length, data set, and each step's windows.

Read as plain JSON from config.json, starts.jsonl and metrics.jsonl, also while the run is writing.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from data_prep.dataset.shards import DataSet
from data_prep.order.skipped_windows import Skips, after_skips, parse_skips
from storage.atomic import read_json
from storage.run_folder import RunFolder

T = TypeVar("T")


@dataclass(frozen=True)
class StepRecord:
    """One step's line: the windows it took and the digest of their tokens."""

    step: int
    first_window: int
    windows: int
    digest: str
    skipped: bool

    @property
    def stop_window(self) -> int:
        """The first window after this step's."""
        return self.first_window + self.windows


@dataclass(frozen=True)
class BatchSettings:
    """What decides the windows of a step, besides the step before."""

    windows: int
    """Windows of a step."""
    skips: Skips
    """Ranges of windows that are left out."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it."""

    folder: Path
    seed: int
    context_length: int
    windows: int
    """Windows of a step, by the configuration of the last start."""
    data_fingerprint: str
    steps: tuple[StepRecord, ...]
    discarded: tuple[StepRecord, ...]
    """Steps that were done, lost by a stop, and done again."""
    skips: Skips = ()
    """Ranges of windows that were to be left out, by the same."""
    before: tuple[tuple[int, BatchSettings], ...] = ()
    """What held before changes of the configuration: each up to, not including, a step."""

    def at(self, step: int) -> BatchSettings:
        """What held when a step was done (last, if it was done more than once)."""
        now = BatchSettings(self.windows, self.skips)
        return next((held for stop, held in self.before if step < stop), now)

    def check_data(self, data: DataSet) -> None:
        """Raises: ValueError if the run was not trained on `data`."""
        if self.data_fingerprint != data.fingerprint:
            raise ValueError(
                f"{self.folder} was trained on data {self.data_fingerprint[:16]}, but "
                f"{data.folder} is {data.fingerprint[:16]}; name the run's own data set"
            )

    def chosen(self, steps: str | None) -> tuple[StepRecord, ...]:
        """The steps `a:b`: from a up to, not including, b; either may be left out."""
        first, stop = parse_range(steps)
        found = tuple(s for s in self.steps if first <= s.step and (stop is None or s.step < stop))
        if not found:
            raise ValueError(
                f"--steps {steps}: {self.folder} has no such step, only {self._extent()}"
            )
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

    Raises: ValueError if it is no run, or a line is damaged.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise ValueError(f"{folder} is no run folder (no {run.config.name}); name one like runs/x")
    content = read_json(run.config)
    try:
        config = content["config"]
        length = int(config["context_length"])
        now = _feeding(config, length)
        return RunRecord(
            folder=folder,
            seed=int(config["seed"]),
            context_length=length,
            windows=now.windows,
            data_fingerprint=content["data_fingerprint"],
            steps=tuple(_read_lines(run.metrics, _step)),
            discarded=tuple(_read_lines(run.discarded_metrics, _step, damaged_too=True)),
            skips=now.skips,
            before=_feeding_before(run.starts, config, length),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run.config} lacks {error}; it is not a run of this program") from error


def _feeding(config: dict[str, Any], length: int) -> BatchSettings:
    skips = parse_skips(config.get("skip_windows") or ())
    return BatchSettings(int(config["batch_tokens"]) // length, skips)


def _feeding_before(
    starts: Path, config: dict[str, Any], length: int
) -> tuple[tuple[int, BatchSettings], ...]:
    """What held up to which step: the changes that the starts noted, undone from the last on.

    A start's steps end where a later one began.
    """
    found: list[tuple[int, BatchSettings]] = []
    for step, replaced in reversed(list(_read_lines(starts, _start, damaged_too=True))):
        config = config | replaced
        stop = min(step, found[-1][0]) if found else step
        found.append((stop, _feeding(config, length)))
    return tuple(reversed(found))


def _start(line: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The step that a start began at, and the settings that it replaced."""
    replaced = {change["key"]: change["before"] for change in line.get("changed", ())}
    return int(line["started_at_step"]), replaced


def _read_lines(
    path: Path, read: Callable[[dict[str, Any]], T | None], damaged_too: bool = False
) -> Iterator[T]:
    """What `read` makes of each line; `damaged_too` passes over those that are damaged.

    Metric lines were put aside because they were; what a lost start changed makes steps differ.
    Raises: ValueError naming a damaged line.
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            found = read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # The last line may be torn: a run that writes, or was killed.
            if number < len(lines) and not damaged_too:
                raise ValueError(f"line {number} of {path} is damaged ({error})") from error
        else:
            if found is not None:
                yield found


def _step(line: dict[str, Any]) -> StepRecord | None:
    if "data/digest" not in line:
        return None
    return StepRecord(
        step=int(line["step"]),
        first_window=int(line["data/first_window"]),
        windows=int(line["data/windows"]),
        digest=str(line["data/digest"]),
        skipped=bool(line.get("train/skipped", 0)),
    )


def gaps_and_overlaps(run: RunRecord, steps: tuple[StepRecord, ...], first: int = 0) -> list[str]:
    """Where lines do not follow on from `first`: a gap or an overlap of steps or of windows.

    A jump over windows that were to be left out is none (nor that they were taken before).
    """
    found = []
    if steps and steps[0].step > first:
        found.append(f"steps {first} to {steps[0].step - 1} have no line")
    begin = after_skips(0, steps[0].windows, run.at(0).skips) if steps else 0
    if steps and steps[0].step == 0 and steps[0].first_window not in (0, begin):
        found.append(f"step 0 begins at window {steps[0].first_window} instead of {begin}")
    for before, after in pairwise(steps):
        if after.step != before.step + 1:
            found.append(f"step {before.step} is followed by step {after.step}")
        kind = "gap" if after.first_window > before.stop_window else "overlap"
        jump = after_skips(before.stop_window, after.windows, run.at(after.step).skips)
        if after.first_window not in (before.stop_window, jump):
            found.append(
                f"{kind}: step {before.step} ends before window {before.stop_window}, step "
                f"{after.step} begins at window {after.first_window}"
            )
    return found
