"""In which settings several runs differ."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.terminal.printable import printable
from train.reporting.run_summary import RunSummary
from train.reporting.run_table import blocks, short_name

# Of one start, or of the machine's disks: no result depends on them.
_LEFT_OUT = ("out", "allow", "stop_at", "profile", "stage", "model.context_length")
_OLD_OPTIMIZER = "adamw"  # of a run whose version did not record it: there was only one
# They decide what is seen and kept of a run, not how it is trained.
_CHECKS = ("guard.every", "guard.box", "data_check", "data_recheck", "hang", "rehearsal")
_SEEN_ONLY = ("eval.", "sample.", "save.", *_CHECKS)
_IN_TABLE = ("optimizer.name", "optimizer.lr", "batch_tokens", "seed", "steps")
_LONGEST_VALUE = 24


def setting_differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, each with the value of every run.

    None also stands for a setting that a run's version did not have; it alone is no difference.
    """
    same_data = len({run.data_fingerprint for run in runs}) == 1
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found: dict[str, list[Any]] = {}
    for key in keys:
        if key in _LEFT_OUT or (key == "data" and same_data):
            continue
        values = [_value(run, key) for run in runs]
        known = [
            _text(_alike(key, value))
            for run, value in zip(runs, values, strict=True)
            if _knows(run, key)
        ]
        if len(set(known)) > 1:
            found[key] = values
    return found


def training_differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """The same without settings that only decide what is measured, sampled, saved or checked."""
    found = setting_differences(runs)
    return {key: values for key, values in found.items() if not key.startswith(_SEEN_ONLY)}


def _value(run: RunSummary, key: str) -> Any:
    default = _OLD_OPTIMIZER if key == "optimizer.name" else None
    return run.settings.get(key, default)


def _knows(run: RunSummary, key: str) -> bool:
    return key in run.settings or key == "optimizer.name"


def _alike(key: str, value: Any) -> Any:
    """The value, with 2 for 2.0; but 1.0 of a schedule is the whole run, and 1 is a step."""
    whole = isinstance(value, float) and value.is_integer() and not key.startswith("schedule.")
    return int(value) if whole else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def short_value(value: Any) -> str:
    """A setting in a table or legend."""
    text = "-" if value is None else printable(_text(value))
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 2]}.."


def _cell(key: str, value: Any) -> str:
    """A setting in the table; of the sources of a mixture the names, which fit sooner."""
    if key == "data" and isinstance(value, list):
        value = " ".join(Path(place).name for place in value)
    return short_value(value)


def format_differences(runs: Sequence[RunSummary], width: int) -> str:
    """A row for each setting that differs but is no column of the table of runs; often empty."""
    found = training_differences(runs)
    found |= setting_differences(runs)  # what does not train is below
    found = {key: values for key, values in found.items() if key not in _IN_TABLE}
    if not found:
        return ""
    columns = [
        [short_name(run.name), *(_cell(key, values[number]) for key, values in found.items())]
        for number, run in enumerate(runs)
    ]
    return "\n\n".join(blocks(["other settings that differ", *found], columns, width))
