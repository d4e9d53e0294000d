"""Rows of the console: numbers in columns that together fit 80 characters."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from storage.metrics import Metrics
from storage.terminal.quantities import duration, short

VALIDATION_LOSS = "val/loss"
_ERROR = "_stderr"
_EVERY_STEP = ("train/", "speed/", "data/", "guard/", "band/", "tokens", "windows", "step")
_LONGEST_NAME = 34
_MOST_OF_SOURCES = 16  # rows
# Tags that a person would not read as what they are.
_NAMES = {VALIDATION_LOSS: "validation loss", "val/bits_per_byte": "bits per byte"}
_SMALLER_IS_BETTER = ("loss", "bits_per_byte", "perplexity")


def _fixed(value: float, digits: int) -> str:
    """A number with some decimals; a large one in three digits and its power of ten."""
    return f"{value:.2e}" if 1000 <= abs(value) < math.inf else f"{value:.{digits}f}"


def step_heading(steps: int, with_mfu: bool) -> str:
    """The names of the columns of `step_row`."""
    mfu = f"{'MFU':>7}" if with_mfu else ""
    return (
        f"{'step':>{_place_width(steps)}}{'loss':>10}{'lr':>10}{'norm':>9}{'ms':>8}"
        f"{'tok/s':>8}{mfu}{'ETA':>10}"
    )


def step_row(step: int, steps: int, metrics: Metrics, seconds: float, seconds_left: float) -> str:
    """A step's values. `seconds` of a step, tokens/s and MFU are those of the last few steps."""
    lately = float(metrics["speed/step_milliseconds"]) / 1000 / seconds if seconds else 1.0
    rate, mfu = lately * float(metrics["speed/tokens_per_second"]), ""
    if "speed/mfu" in metrics:
        mfu = f"{100 * lately * float(metrics['speed/mfu']):6.1f}%"
    place = f"{step}/{steps}"
    return (
        f"{place:>{_place_width(steps)}}{_fixed(float(metrics['train/loss']), 4):>10}"
        f"{metrics['train/lr']:10.2e}{_fixed(float(metrics['train/grad_norm']), 3):>9}"
        f"{1000 * seconds:8,.0f}{short(rate):>8}"
        f"{mfu}{duration(seconds_left):>10}"
    )


def _place_width(steps: int) -> int:
    return max(2 * len(str(steps)) + 1, 9)


def measured(metrics: Mapping[str, Any]) -> Metrics:
    """What was evaluated on the weights of a step: everything that not every step has."""
    return {
        tag: value
        for tag, value in metrics.items()
        if not tag.startswith(_EVERY_STEP) and value is not None
    }


class Evaluations:
    """The last and the best value of each measured number, and rows that compare with them."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}

    def best(self, tag: str) -> float | None:
        """The best value so far; None if there is none."""
        return self._best.get(tag)

    def note(self, found: Mapping[str, float | int | str]) -> None:
        """Take what was measured, without rows: a later start continues the comparison."""
        for tag, value in _numbers(found).items():
            sign = 1 if _is_better_small(tag) else -1
            if not math.isnan(value):
                self._last[tag] = value
                self._best[tag] = min(self._best.get(tag, value), value, key=lambda v: sign * v)

    def rows(self, found: Metrics) -> Iterator[str]:
        """A row for each number: its name, its error, the change to the last, whether it is best.

        What the rows show counts as measured from then on.
        """
        numbers = _numbers(found)
        before, best_before = dict(self._last), dict(self._best)
        self.note(found)
        of_sources = [tag for tag in numbers if _is_of_a_source(tag)]
        hidden = set(of_sources if len(of_sources) > _MOST_OF_SOURCES else ())
        for tag, value in numbers.items():
            if tag in hidden:
                continue
            error = found.get(tag + _ERROR)
            off = f"±{error:.4f}" if isinstance(error, float) else ""
            change = f"{value - before[tag]:+.4f}" if tag in before else ""
            is_best = tag in before and self._best[tag] == value != best_before[tag]
            best = "best" if is_best else ""
            name = name_of(tag)[:_LONGEST_NAME]
            yield f"  {name:<{_LONGEST_NAME}}{_fixed(value, 4):>10}{off:>9}{change:>10}  {best}"
        if hidden:
            yield f"  {len(hidden)} more, of each source of the mixture, are in metrics.jsonl"


def _numbers(found: Mapping[str, float | int | str]) -> dict[str, float]:
    """What was measured, without the errors, which stand beside their numbers."""
    return {
        tag: float(value)
        for tag, value in found.items()
        if isinstance(value, float | int) and not tag.endswith(_ERROR)
    }


def _is_of_a_source(tag: str) -> bool:
    """Whether a number is of one source of a mixture: val/NAME/loss."""
    return tag.startswith("val/") and tag.count("/") > 1


def _is_better_small(tag: str) -> bool:
    return tag.endswith(_SMALLER_IS_BETTER)


def name_of(tag: str) -> str:
    """A tag as words: `hellaswag/acc_norm` is hellaswag by length, `val/x/loss` the loss of x."""
    if _is_of_a_source(tag):
        parts = tag.split("/")
        return f"{name_of(f'val/{parts[-1]}')}, {'/'.join(parts[1:-1])}"
    task, _, number = tag.partition("/")
    words = {"acc": "accuracy", "acc_norm": "by length"}
    return _NAMES.get(tag) or f"{task} {words.get(number, number.replace('_', ' '))}"
