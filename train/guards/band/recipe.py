"""Whether a band is one for a run: the same recipe, data and length."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.guards.band.record import SHIPPED, Band, read_band

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What a run is, as its config.json says."""

    recipe: Mapping[str, Any]
    """The settings that decide the training, by dotted name."""
    seed: int
    steps: int
    data_fingerprint: str
    val_tokens: int
    """Tokens of each validation: only whole windows count."""
    made: Mapping[str, Any]
    """What computes it: torch, device, number format."""


def recipe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two recipes, each as `setting: one value -> the other`.

    A setting that one of the two versions did not have is no difference, unless it is in use.
    """
    name = "optimizer.name"
    found = [
        _change(key, before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if not _alike(before.get(key), now.get(key), key in before and key in now)
    ]
    if before.get(name) != now.get(name):  # then their settings do not compare
        return [text for text in found if name in text or not text.startswith("optimizer.")]
    return found


def _alike(before: Any, now: Any, both: bool) -> bool:
    if not both:
        return not (before or now)
    # For Python, 1 step is 1.0, the whole run.
    return json.dumps(before) == json.dumps(now) or (before == now and before not in (0, 1))


def _change(key: str, before: Any, now: Any) -> str:
    return f"{key}: {before} -> {now}"


def band_differences(band: Band, facts: RunFacts) -> list[str]:
    """Why a band is none for a run; empty if it is one."""
    found = recipe_differences(band.recipe, facts.recipe)
    if band.steps != facts.steps:
        found.append(_change("steps", band.steps, facts.steps))
    if band.data_fingerprint != facts.data_fingerprint:
        short = band.data_fingerprint[:16], facts.data_fingerprint[:16]
        found.append(_change("data set", *short))
    return found


def _shipped_bands() -> Iterator[Band]:
    """The bands that come with Ratchet. One that cannot be read is logged."""
    for path in sorted(SHIPPED.glob("*.json")):
        try:
            yield read_band(path)
        except (OSError, ValueError) as error:
            log.warning("a band is left out: %s", error)


def find_band(wanted: str | Path, facts: RunFacts) -> Band | None:
    """The band of the setting `guard.band` for a run; None if there is none.

    Raises: ValueError if a file that was named cannot be read.
    """
    if wanted == "off":
        return None
    if wanted == "auto":
        return next((band for band in _shipped_bands() if not band_differences(band, facts)), None)
    band = read_band(Path(wanted))
    if differences := band_differences(band, facts):
        shown = "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else "")
        log.warning(
            "the band %s is of another recipe (%s) and is not used; %s makes such a run",
            wanted,
            shown,
            band.command,
        )
        return None
    return band
