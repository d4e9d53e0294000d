"""A verdict in words: one sentence, then the figures that support it."""

import math

from storage.terminal.quantities import counted
from train.experiments.intervals import Interval
from train.experiments.paired_test import GroupDifference
from train.experiments.run_pairs import RunPairs
from train.experiments.verdict import Ratio, Verdict
from train.reporting.setting_differences import short_value

_MOST_DIFFERENCES = 8


def sentence(verdict: Verdict, pairs: RunPairs) -> str:
    """The verdict in one sentence."""
    found = verdict.difference.interval
    how_many = _how_many(verdict, pairs)
    if verdict.word == "the same to the bit":
        return f"A and B are the same to the bit: equal final validation losses in {how_many}."
    amount = f"{abs(found.mean):.4f} {pairs.unit}"
    if verdict.word in ("better", "worse"):
        lower = "lower" if verdict.word == "better" else "higher"
        small = ""
        if verdict.below_smallest:
            small = f", by less than the {verdict.smallest:g} that matter"
        return (
            f"B is {verdict.word} than A{small}: its final validation loss is {lower} by {amount} "
            f"({_ends(found)}; {how_many})."
        )
    if verdict.below_smallest:
        return (
            f"A and B are not told apart, and any difference is smaller than {verdict.smallest:g} "
            f"{pairs.unit}: {found.mean:+.4f} ({_ends(found)}; {how_many})."
        )
    return (
        f"A and B are not told apart: the final validation losses differ by {found.mean:+.4f} "
        f"{pairs.unit} ({_ends(found)}; {how_many}){_what_would_tell(verdict, pairs)}."
    )


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
    ends = f"{_number(found.low, '.3f')} to {_number(found.high, '.3f')}"
    return f"B needs {found.mean:.3f} ({ends}) of A's {what}{missing}"


def cost(runs: int, taken: int, tokens: int, seconds: float, cpu_seconds: float | None) -> str:
    """What the runs cost, in a line."""
    parts = [
        f"{counted(runs, 'run')}{f', {taken} of them taken' if taken else ''}",
        f"{tokens:,} tokens",
        f"{seconds:,.0f} seconds of training",
    ]
    if cpu_seconds is not None:
        parts.append(f"{cpu_seconds:,.0f} CPU seconds now")
    return f"it cost: {', '.join(parts)}"
