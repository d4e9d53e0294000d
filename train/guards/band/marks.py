"""The marked steps of a run, and what is measured there.

Mark m is the state after m updates: the validation loss of those weights, and the mean training
loss and gradient norm of the last updates before it, at most half of all and at most 50.
"""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from storage.json_lines import is_number

TRAIN_LOSS, GRAD_NORM, HELD_OUT_LOSS = "train/loss", "train/grad_norm", "val/loss"
FIGURES = (TRAIN_LOSS, GRAD_NORM, HELD_OUT_LOSS)
"""What is compared. Of the gradient norm it is the mean of the logarithms."""
_DIGEST = "data/digest"
LONGEST_WINDOW = 50
_PARTS = 10  # of a run, each of which ends at a mark, as the validations of most presets do


def marked_steps(steps: int) -> tuple[int, ...]:
    """0, 1, 2, 4 and so on up to a tenth of the run, then every tenth."""
    tenths = {round(steps * part / _PARTS) for part in range(1, _PARTS + 1)}
    doubled = {2**power for power in range(steps.bit_length())}
    return tuple(sorted({0, *tenths, *(step for step in doubled if step < first_tenth(steps))}))


def first_tenth(steps: int) -> int:
    """The mark at the end of the first tenth of a run."""
    return round(steps / _PARTS)


def window_of(mark: int) -> range:
    """The steps whose mean belongs to a mark."""
    return range(mark - min(LONGEST_WINDOW, -(-mark // 2)), mark)


def figures_at(mark: int, lines: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """The figures at a mark, from metric lines by step; without those that lack a value."""
    found: dict[str, float] = {}
    window = [lines.get(step, {}) for step in window_of(mark)]
    for tag in (TRAIN_LOSS, GRAD_NORM):
        values = [line.get(tag) for line in window]
        numbers = [value for value in values if is_number(value)]
        if values and len(numbers) == len(values) and (tag == TRAIN_LOSS or min(numbers) > 0):
            found[tag] = fmean(numbers if tag == TRAIN_LOSS else map(math.log, numbers))
    validation = lines.get(mark, {}).get(HELD_OUT_LOSS)
    if is_number(validation):
        found[HELD_OUT_LOSS] = validation
    return found


def digest_at(mark: int, lines: Mapping[int, Mapping[str, Any]]) -> str | None:
    """The digest of the tokens of the last update before a mark; None if it is not recorded."""
    digest = lines.get(mark - 1, {}).get(_DIGEST)
    return digest if isinstance(digest, str) else None
