"""What a person reads of a run and its band."""

import math

from train.guards.band.causes import likely_causes
from train.guards.band.comparison import BandComparison
from train.guards.band.judgement import BandJudge, MarkResult
from train.guards.band.marks import GRAD_NORM, HELD_OUT_LOSS, TRAIN_LOSS

_NAMES = {TRAIN_LOSS: "loss", GRAD_NORM: "gradient norm", HELD_OUT_LOSS: "validation loss"}
_SHORT_NAMES = {TRAIN_LOSS: "loss", GRAD_NORM: "log norm", HELD_OUT_LOSS: "val"}
_LEAST_CHANCE = 1e-9
_MOST_MARKS = 6  # that are named


def within_text(judge: BandJudge, result: MarkResult) -> str:
    """Such as: step 90 in band demo: loss -0.7 sd, log norm +0.1 sd, val +0.4 sd of 10 seeds.

    Beside the run of its own seed: differences in nats, and of the logarithm of the gradient norm.
    """
    parts = ", ".join(
        f"{_SHORT_NAMES[one.figure]} "
        + (f"{one.difference:+.1g}" if one.paired else f"{one.z:+.1f} sd")
        for one in result.comparisons
    )
    paired = all(one.paired for one in result.comparisons)
    beside = f"from seed {judge.seed}" if paired else f"of {len(judge.band.seeds)} seeds"
    return f"step {result.mark:,} in band {judge.band.name}: {parts} {beside}"


def outside_text(judge: BandJudge, result: MarkResult) -> str:
    """What is outside at a mark, how likely by chance, and the likely causes."""
    band = judge.band
    parts = []
    if result.other_data:
        parts.append(
            f"step {result.mark - 1} did not train on the tokens of the band's run of seed "
            f"{judge.seed}"
        )
    worst = sorted((one for one in result.comparisons if one.outside), key=lambda one: one.chance)
    parts += [_outside_part(one, judge) for one in worst]
    text = f"outside the band {band.name} at step {result.mark:,}: {'; '.join(parts)}"
    causes = likely_causes(judge.results)
    if causes:
        text += f". Likely (not certain): {'; '.join(causes)}"
    return text


def _outside_part(one: BandComparison, judge: BandJudge) -> str:
    value, expected = one.value, one.expected
    if one.figure == GRAD_NORM:
        value, expected = math.exp(value), math.exp(expected)
    chance = _chance(one.chance)
    if one.paired:
        return (
            f"{_NAMES[one.figure]} {value:.4f}, {value - expected:+.1g} from the band's run of "
            f"seed {judge.seed} ({abs(one.z):,.0f} times the rounding, {chance})"
        )
    return (
        f"{_NAMES[one.figure]} {value:.4f}, not {expected:.4f} of {len(judge.band.seeds)} seeds "
        f"({one.z:+.1f} deviations, {chance})"
    )


def _chance(chance: float) -> str:
    if chance < _LEAST_CHANCE:
        return "by chance less than once in a billion"
    return f"by chance once in {1 / chance:,.0f}"


def verdict_of(judge: BandJudge) -> str:
    """Such as: within the band demo of 20 seeds at all 17 marks. Empty if nothing was compared."""
    band = judge.band
    results = [one for one in judge.results if one.comparisons]
    outside = [one for one in judge.results if one.outside]
    name = f"{band.name} of {len(band.seeds)} seeds"
    if not outside:
        return f"within the band {name} at all {len(results)} marks" if results else ""
    figures = {_NAMES[one.figure] for r in outside for one in r.comparisons if one.outside}
    figures |= {"tokens" for one in outside if one.other_data}
    marks = ", ".join(f"{one.mark:,}" for one in outside[:_MOST_MARKS])
    marks += ", …" if len(outside) > _MOST_MARKS else ""
    return (
        f"outside the band {name} at {len(outside)} of {len(judge.results)} marks: "
        f"{', '.join(sorted(figures))} (steps {marks})"
    )


def rows_of(judge: BandJudge) -> list[tuple[str, str]]:
    """The verdict and the likely causes, as rows of a table."""
    verdict = verdict_of(judge)
    causes = [("likely cause", cause) for cause in likely_causes(judge.results)]
    return [("band", verdict), *causes] if verdict else []
