"""A verdict in words: one sentence, then the figures that support it."""

import math
from dataclasses import dataclass

from storage.terminal.quantities import counted
from train.experiments.intervals import Interval
from train.experiments.paired_test import GroupDifference
from train.experiments.run_pairs import RunPairs
from train.experiments.verdict import Ratio, Verdict
from train.reporting.setting_differences import short_value

_MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class Cost:
    """What the runs of a verdict took."""

    runs: int
    taken: int
    """Of these, the runs that were finished before."""
    tokens: int
    train_seconds: float
    """Time of all training steps."""
    cpu_seconds: float | None
    """Of what was run now; None if nothing was to be run."""

    def __str__(self) -> str:
        taken = f" ({self.taken} of them taken)" if self.taken else ""
        now = "" if self.cpu_seconds is None else f", {self.cpu_seconds:,.0f} CPU seconds now"
        return (
            f"{counted(self.runs, 'run')}{taken}, {self.tokens:,} tokens, "
            f"{self.train_seconds:,.0f} seconds of training{now}"
        )


def sentence(verdict: Verdict, pairs: RunPairs, cost: Cost) -> str:
    """The verdict in one sentence."""
    found = verdict.difference.interval
    how_many = _how_many(verdict, pairs)
    end = f"({how_many}; it cost {cost})"
    if verdict.word == "the same to the bit":
        return f"A and B are the same to the bit: equal final validation losses {end}."
    if verdict.word in ("better", "worse"):
        lower = "lower" if verdict.word == "better" else "higher"
        small = ""
        if verdict.below_smallest:
            small = f", by less than the {verdict.smallest:g} that matter"
        return (
            f"B is {verdict.word} than A{small}: its final validation loss is {lower} by "
            f"{_plus_minus(abs(found.mean), found)} {pairs.unit}{_for_equal_loss(verdict, pairs)} "
            f"{end}."
        )
    if verdict.below_smallest:
        return (
            f"A and B are not told apart, and any difference is smaller than {verdict.smallest:g} "
            f"{pairs.unit}: that of the final validation losses is "
            f"{_plus_minus(found.mean, found)} {end}."
        )
    return (
        f"A and B are not told apart: B's final validation loss differs by "
        f"{_plus_minus(found.mean, found)} {pairs.unit}{_what_would_tell(verdict, pairs)} {end}."
    )


def _plus_minus(value: float, interval: Interval) -> str:
    width = f" ± {interval.half_width:.4f}" if math.isfinite(interval.half_width) else ""
    return f"{value:.4f}{width}"


def _for_equal_loss(verdict: Verdict, pairs: RunPairs) -> str:
    """What B needs for A's loss, or A for B's, as a clause."""
    steps, seconds = verdict.tokens.interval, verdict.seconds.interval
    if steps is None or seconds is None:
        return ""
    what = "steps" if pairs.same_batches else "tokens"
    return (
        f", and for equal loss it needs {_ratio(steps)} of A's {what} and {_ratio(seconds)} of "
        "its seconds"
    )


def _ratio(interval: Interval) -> str:
    ends = f"{_number(interval.low, '.3f')} to {_number(interval.high, '.3f')}"
    return f"{interval.mean:.3f} ({ends})"


def _what_would_tell(verdict: Verdict, pairs: RunPairs) -> str:
    found, each = verdict.difference.interval, "pairs" if pairs.paired else "runs each"
    if found.count < 2 or not math.isfinite(found.deviation):
        return "; a single pair does not show its noise"
    needed = f"more than 100,000 {each}"
    if verdict.needed is not None:
        needed = f"about {verdict.needed:,} {each}"
    return f"; if that is the true difference, {needed} would show it in nine of ten judgements"


def _how_many(verdict: Verdict, pairs: RunPairs) -> str:
    if pairs.paired:
        return counted(len(pairs.a), "pair of runs", "pairs of runs")
    return f"{len(pairs.a)} and {len(pairs.b)} runs"


def figures(verdict: Verdict, pairs: RunPairs) -> list[str]:
    """The lines below the sentence: every figure with its unit, count and confidence."""
    plan, found = verdict.plan, verdict.difference
    level = f"{100 * found.interval.confidence:g} %"
    several = f"one of at most {len(plan.looks)} looks" if len(plan.looks) > 1 else "one look"
    lines = [
        f"B differs from A in: {_settings(pairs)}",
        f"intervals are Student's t at {level} ({several}), so that the chance of a wrong "
        f'"better" or "worse" is at most {100 * plan.error_rate:g} %',
        f"final validation loss: A {verdict.means[0]:.4f}, B {verdict.means[1]:.4f}, B - A "
        f"{_difference(found)} {pairs.unit}",
    ]
    if math.isfinite(found.interval.deviation):
        lines.append(
            f"a single difference deviates by {found.interval.deviation:.2g} {pairs.unit}; "
            f"{_how_many(verdict, pairs)} find one of {verdict.seen:.4f} in nine of ten judgements"
        )
    if verdict.train_difference is not None:
        lines.append(
            "training loss of the last tenth, same batches: B - A "
            f"{_difference(verdict.train_difference)} nats per token"
        )
    if pairs.paired:
        what = "steps" if pairs.same_batches else "tokens"
        lines.append(f"{what} to equal loss: {_share(verdict.tokens, what)}")
        seconds = _share(verdict.seconds, "seconds")
        lines.append(
            f"seconds to equal loss: {seconds}; they also depend on what else the machine did"
        )
    lines += [f"note: {note}" for note in pairs.notes]
    return lines


def _settings(pairs: RunPairs) -> str:
    items = list(pairs.differences.items())
    shown = [f"{key} {short_value(b)} instead of {short_value(a)}" for key, (a, b) in items]
    more = len(shown) - _MOST_DIFFERENCES
    text = ", ".join(shown[:_MOST_DIFFERENCES]) or "nothing"
    return f"{text}, and {more} more settings" if more > 0 else text


def _difference(found: GroupDifference) -> str:
    return f"{found.interval.mean:+.4f} ({_ends(found.interval)}; p = {found.p_value:.2g})"


def _ends(interval: Interval) -> str:
    return f"{_number(interval.low, '+.4f')} to {_number(interval.high, '+.4f')}"


def _number(value: float, digits: str) -> str:
    return format(value, digits) if math.isfinite(value) else "anything"


def _share(ratio: Ratio, what: str) -> str:
    missing = f" (in {counted(ratio.not_reached, 'pair')} the curves do not tell)"
    missing = missing if ratio.not_reached else ""
    found = ratio.interval
    if found is None:
        return f"the curves do not tell{missing}"
    return f"B needs {_ratio(found)} of A's {what}{missing}"
