"""What a run is, for a comparison with others: its recipe, data, length and machine."""

from collections.abc import Mapping
from typing import Any

from storage.records.run_records import flat_settings
from train.checkpoints.config_changes import Change
from train.guards.band.recipe import RunFacts

# Settings that may not change in a run, but do not decide how a run with another value trains.
# `dtype` is compared as what it led to; `reduction` changes the rounding only.
_NO_RECIPE = (
    "seed",
    "steps",
    "dtype",
    "stop_when_worse",
    "context_length",
    "guard.window",
    "reduction",
)
_SPIKES = "guard.skip_spikes"


def run_facts(record: Mapping[str, Any]) -> RunFacts:
    """The facts of a run, from the content of its config.json."""
    settings, derived = flat_settings(record["config"]), record["run"]
    recipe = {
        key: value
        for key, value in settings.items()
        if key not in _NO_RECIPE and Change(key, None, None).rule[0] != "free"
    }
    if settings.get(_SPIKES):  # then the window decides too
        recipe["guard.window"] = settings["guard.window"]
    length, validated = settings["context_length"], settings.get("eval.val_tokens")
    return RunFacts(
        recipe=recipe,
        seed=settings["seed"],
        steps=derived["steps"],
        data_fingerprint=record["data_fingerprint"],
        val_tokens=validated // length * length if isinstance(validated, int) else 0,
        made={key: derived.get(key) for key in ("torch", "device", "dtype", "cpu", "gpu")},
    )
