"""When a run counts as diverged: one rule, from the records of its steps alone.

A run has diverged once its training loss, the median of a block of steps, is _MARGIN above the
lowest such level before (the first is the loss of step 0, before any update). A loss that is not
finite counts as infinite. It has also diverged where the trainer gives up, after as many skipped
steps in a row. A block has a hundredth of the steps of the run, or ten if that is more: one spike
is no divergence. The rule looks at each block once, so it says the same whenever it is asked.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from storage.json_lines import is_count, is_number
from train.guards.spikes import MAX_SKIPPED_IN_A_ROW

_MARGIN = 1.0  # nats per token: 2.7 times the perplexity
_LEAST_STEPS = 10
_PARTS = 100  # of a run, each a block
_INFINITE = float("inf")


class Divergence:
    """The rule, applied to the metric lines of one run as they come, in the order of steps."""

    def __init__(self, steps: int) -> None:
        """`steps`: of the whole run."""
        self.at: int | None = None
        """The step at which the run had diverged; None while it has not."""
        self._size = max(_LEAST_STEPS, steps // _PARTS)
        self._block: list[float] = []
        self._lowest: float | None = None
        self._skipped = 0  # in a row

    def note(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; one without a training loss, as the last, is no step."""
        if self.at is not None or "train/loss" not in line or not is_count(line.get("step")):
            return
        loss = line["train/loss"]
        value = float(loss) if is_number(loss) else _INFINITE
        if self._lowest is None:
            self._lowest = value
        self._block.append(value)
        self._skipped = self._skipped + 1 if line.get("train/skipped") else 0
        level = median(self._block) if len(self._block) == self._size else None
        if level is not None:
            self._block.clear()
        too_high = level is not None and not level < self._lowest + _MARGIN
        if too_high or self._skipped >= MAX_SKIPPED_IN_A_ROW:
            self.at = line["step"]
        elif level is not None:
            self._lowest = min(self._lowest, level)


def diverged_at(lines: Iterable[Mapping[str, Any]], steps: int) -> int | None:
    """The step at which a run of `steps` steps with these metric lines had diverged, or None."""
    rule = Divergence(steps)
    for line in lines:
        rule.note(line)
    return rule.at
