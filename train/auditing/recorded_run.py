"""A run as its folder records it: the lines of its steps, and the settings that made each."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.order.training_data import TrainingData
from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE, step_of
from storage.json_lines import is_count, read_lines, read_metrics
from storage.ownership.run_identity import RUN_ID, identity_of
from storage.run_folder import RunFolder
from train.checkpoints.branch import PARENT
from train.checkpoints.config_values import config_with
from train.checkpoints.recorded_config import of_the_run
from train.config import Config
from train.mixture import steps_of_mixture

_Line = Mapping[str, Any]


class Stretch(NamedTuple):
    """Steps that were made in one way: up to the next stretch's first."""

    first: int
    settings: Mapping[str, Any]
    """As in config.json, when these steps were made."""
    world_size: int
    micro_batch: int
    made: Mapping[str, Any]
    """What affects rounding: torch, device, threads and so on; empty if it was not recorded."""

    @property
    def config(self) -> Config:
        """The settings as a configuration. Raises: ValueError if they are none."""
        try:
            return config_with(Config(), of_the_run(self.settings))
        except ValueError as error:
            raise ValueError(
                f"the settings of steps from {self.first} on are none of this version ({error}); "
                "if a newer version wrote them, update Ratchet"
            ) from error

    def steps_of_run(self, data: TrainingData) -> int:
        """The steps that the run was to have."""
        config = self.config
        return config.steps or steps_of_mixture(config, data)


@dataclass(frozen=True)
class RecordedRun:
    """What an audit knows of a run before it repeats anything."""

    folder: RunFolder
    record: Mapping[str, Any]
    """The content of config.json."""
    lines: Mapping[int, _Line]
    """The metric line of each step."""
    stretches: Sequence[Stretch]
    checkpoints: Sequence[Path]
    """Those that are kept, oldest first."""

    @property
    def run_id(self) -> str:
        """The run's identity; empty if an older version wrote it."""
        return self.record.get(RUN_ID, "")

    @property
    def parent(self) -> Mapping[str, Any]:
        """From which checkpoint of which run this one began; empty if from nothing or --init."""
        found = self.record.get(PARENT)
        return found if isinstance(found, dict) and is_count(found.get("step")) else {}

    @property
    def first_step(self) -> int:
        """The first step that this run made itself."""
        return self.parent.get("step", 0)

    def stretch_at(self, step: int) -> Stretch:
        """The stretch that holds a step."""
        at = bisect_right([stretch.first for stretch in self.stretches], step)
        return self.stretches[max(at - 1, 0)]

    def parts(self, first: int, stop: int) -> list[tuple[int, int, Stretch]]:
        """The steps [first, stop) cut where another stretch begins: first, stop, stretch."""
        inside = [s.first for s in self.stretches if first < s.first < stop]
        borders = [first, *inside, stop]
        return [(a, b, self.stretch_at(a)) for a, b in pairwise(borders) if a < b]


def read_recorded_run(path: Path) -> RecordedRun:
    """The run in a folder. Raises: ValueError if there is none, or its config.json is damaged."""
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is no run folder (no {folder.config.name}); give one like runs/x")
    record = folder.read_config()
    folder.identity = identity_of(record)
    checkpoints = folder.all_checkpoints()[::-1]
    lines = {line["step"]: line for line in read_metrics(folder.metrics) if "data/digest" in line}
    if checkpoints and not folder.is_finished():
        lines = _lines_to_be_added(checkpoints[-1]) | lines
    return RecordedRun(
        folder, record, lines, _stretches(record, read_lines(folder.starts)), checkpoints
    )


def _lines_to_be_added(newest: Path) -> dict[int, _Line]:
    """The lines that only a checkpoint has, because rank 0 died: the next start would add them."""
    try:
        found = read_json(newest / STATE_FILE).get("lines", [])
        return {line["step"]: line for line in found if "data/digest" in line}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # the chain reports it
        return {}


def _stretches(record: Mapping[str, Any], starts: Sequence[_Line]) -> list[Stretch]:
    """What each start made, found by undoing the recorded changes from the last start on.

    Where starts.jsonl has lost a line, the next one's settings count for its steps too.
    """
    run, settings = record["run"], record["config"]
    found: list[Stretch] = []
    newest = True
    for line in filter(_is_start, reversed(starts)):
        step = line.get("out_of_memory_at_step", line["started_at_step"])
        made = line.get("made") or (run if newest else {})
        found.append(Stretch(step, settings, line["world_size"], line["micro_batch"], made))
        newest = newest and "out_of_memory_at_step" in line
        settings = _undone(settings, line["changed"])
    if not found:
        ranks = run.get("world_size")
        ranks = ranks if is_count(ranks) and ranks else 1
        found = [Stretch(0, settings, ranks, run["micro_batch"], run)]
    kept: list[Stretch] = []
    for stretch in reversed(found):  # a start that went back has replaced the steps after it
        kept = [*(s for s in kept if s.first < stretch.first), stretch]
    return [kept[0]._replace(first=0), *kept[1:]]


def _is_start(line: _Line) -> bool:
    """Whether a line of starts.jsonl is whole. One that is not counts as lost."""
    sizes = [line.get(name) for name in ("world_size", "micro_batch")]
    steps = [line.get("started_at_step"), line.get("out_of_memory_at_step", 0)]
    changed = line.get("changed")
    return (
        all(is_count(size) and size > 0 for size in sizes)
        and all(map(is_count, steps))
        and isinstance(changed, list)
        and all(isinstance(change, dict) for change in changed)
        and isinstance(line.get("made", {}), dict)
    )


def _undone(settings: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings before some changes."""
    before = deepcopy(dict(settings))
    for change in changes:
        *groups, name = str(change.get("key", "")).split(".")
        inner = before
        for group in groups:
            inner = inner.get(group) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[name] = change.get("before")
    return before


def segments_of(run: RecordedRun) -> list[tuple[int, int]]:
    """The steps between neighbouring kept checkpoints, and before the first: (first, stop)."""
    steps = [step_of(path) for path in run.checkpoints]
    borders = [run.first_step, *(step for step in steps if step > run.first_step)]
    return list(pairwise(borders))
