"""Better, worse or not told apart: the verdict on two groups of runs, with what supports it.

One figure decides: the loss of the last validation, B minus A. It was chosen beforehand: it is what
a recipe is for, on the same tokens for both, and means the same for every change. The training loss
of the last tenth showed a difference no sooner on recorded pairs (bench/judge_calibration.py), and
a change of rate, batch or dropout moves it without moving what was learned; it supports.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from train.experiments.equal_loss import mean_ratio, ratio_of_seconds, ratio_of_tokens
from train.experiments.intervals import Interval
from train.experiments.looks import LookPlan
from train.experiments.paired_test import (
    GroupDifference,
    compare_groups,
    compare_pairs,
    pairs_needed,
    smallest_seen,
)
from train.experiments.run_pairs import RunEnd, RunPairs
from train.reporting.run_summary import RunSummary

_VERSION = 1
"""Of the verdict's JSON."""
_Word = Literal["better", "worse", "not told apart", "the same to the bit"]
_LAST_PART = 0.1  # of a run, whose training losses are compared


@dataclass(frozen=True)
class Ratio:
    """What B needs for equal loss, as a share of what A needs."""

    interval: Interval | None
    """Of the pairs whose curves tell; None if none does."""
    not_reached: int
    """Pairs whose curves do not tell."""


@dataclass(frozen=True)
class Verdict:
    """What two groups of runs say."""

    word: _Word
    difference: GroupDifference
    """Of the final validation losses, B minus A."""
    means: tuple[float, float]
    """The losses of A and of B."""
    train_difference: GroupDifference | None
    """Of the training losses in the last tenth of the run; None where the batches differ."""
    tokens: Ratio
    seconds: Ratio
    needed: int | None
    """Pairs (or runs of each group) with which a difference of this size would be found in nine of
    ten judgements; None: none is seen, or too many."""
    seen: float
    """The difference that as many as there are find in nine of ten."""
    smallest: float | None
    """The difference that matters, if it was given."""
    plan: LookPlan

    @property
    def settled(self) -> bool:
        """Whether more pairs would not change what is said."""
        return self.word != "not told apart" or self.below_smallest

    @property
    def below_smallest(self) -> bool:
        """Whether any difference is too small to matter."""
        return self.smallest is not None and self.difference.is_within(self.smallest)

    def as_json(self) -> dict[str, Any]:
        """All figures as JSON values; an infinite end is None."""
        return {
            "version": _VERSION,
            "verdict": self.word,
            "below_smallest": self.below_smallest,
            "loss": _as_json(self.difference) | {"a": self.means[0], "b": self.means[1]},
            "train_loss": self.train_difference and _as_json(self.train_difference),
            "tokens_to_equal_loss": _ratio_as_json(self.tokens),
            "seconds_to_equal_loss": _ratio_as_json(self.seconds),
            "pairs_needed": self.needed,
            "smallest_seen": _finite(self.seen),
            "smallest": self.smallest,
            "error_rate": self.plan.error_rate,
            "looks": list(self.plan.looks),
        }


def judge_pairs(pairs: RunPairs, plan: LookPlan, smallest: float | None = None) -> Verdict:
    """The verdict on the runs so far; `plan` says how often is judged at most."""
    rate = plan.error_rate_of_look
    difference = _compared(pairs, lambda end: end.loss, rate)
    found = difference.interval
    known = found.deviation if math.isfinite(found.deviation) else 0.0
    return Verdict(
        word=_word(difference, pairs.paired),
        difference=difference,
        means=(fmean(end.loss for end in pairs.a), fmean(end.loss for end in pairs.b)),
        train_difference=_train_difference(pairs, rate),
        tokens=_ratio(pairs, ratio_of_tokens, 1 - rate),
        seconds=_ratio(pairs, ratio_of_seconds, 1 - rate),
        needed=pairs_needed(found.mean, known, rate) if found.count > 1 and found.mean else None,
        seen=smallest_seen(known, found.count, rate) if found.count > 1 else math.inf,
        smallest=smallest,
        plan=plan,
    )


def _compared(pairs: RunPairs, value: Callable[[RunEnd], float], rate: float) -> GroupDifference:
    compare = compare_pairs if pairs.paired else compare_groups
    return compare([value(end) for end in pairs.a], [value(end) for end in pairs.b], rate)


def _word(difference: GroupDifference, paired: bool) -> _Word:
    if paired and difference.identical:
        return "the same to the bit"
    if not difference.told_apart:
        return "not told apart"
    return "better" if difference.interval.mean < 0 else "worse"


def _train_difference(pairs: RunPairs, rate: float) -> GroupDifference | None:
    """The difference in the last tenth of the run, over the steps that both runs recorded."""
    if not pairs.same_batches or any(end.diverged for end in (*pairs.a, *pairs.b)):
        return None
    both = [_last_losses(x.run, y.run) for x, y in zip(pairs.a, pairs.b, strict=True)]
    if not all(losses for losses, _ in both):
        return None
    return compare_pairs([fmean(x) for x, _ in both], [fmean(y) for _, y in both], rate)


def _last_losses(a: RunSummary, b: RunSummary) -> tuple[list[float], list[float]]:
    """The training losses of the two runs at the same points of their last tenth."""
    own, other = (
        dict(zip(run.train_curve.tokens, run.train_curve.loss, strict=True)) for run in (a, b)
    )
    start = (1 - _LAST_PART) * max(own, default=0.0)
    shared = [tokens for tokens in own if tokens in other and tokens >= start]
    return [own[tokens] for tokens in shared], [other[tokens] for tokens in shared]


def _ratio(
    pairs: RunPairs,
    ratio: Callable[[RunSummary, RunSummary], float | None],
    confidence: float,
) -> Ratio:
    """Of pairs only: a loss to reach is one run's."""
    if not pairs.paired:
        return Ratio(None, 0)
    sound = [
        (x.run, y.run)
        for x, y in zip(pairs.a, pairs.b, strict=True)
        if not x.diverged and not y.diverged
    ]
    found = [value for x, y in sound if (value := ratio(x, y)) is not None]
    interval = mean_ratio(found, confidence) if found else None
    return Ratio(interval, len(pairs.a) - len(found))


def _as_json(difference: GroupDifference) -> dict[str, Any]:
    return {
        **_interval_as_json(difference.interval),
        "p_value": difference.p_value,
        "paired": difference.paired,
    }


def _ratio_as_json(ratio: Ratio) -> dict[str, Any] | None:
    if ratio.interval is None:
        return None
    return {**_interval_as_json(ratio.interval), "not_reached": ratio.not_reached}


def _interval_as_json(interval: Interval) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(interval).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
