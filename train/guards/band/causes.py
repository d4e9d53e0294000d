"""Likely causes of a run outside its band, by what its figures do.

A cause has a signature: what is seen if it is the cause. Causes of whose signature most is seen are
named. They are likely and never certain: two can look alike, and one that is not in the table looks
like its nearest neighbour there. The table was made with bench/planted_mistakes.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from train.guards.band.comparison import BandComparison
from train.guards.band.judgement import MarkResult
from train.guards.band.marks import GRAD_NORM, HELD_OUT_LOSS, TRAIN_LOSS

_MOST_NAMED = 3
_LEAST_SCORE = 0.7
_SEEN_Z = 3.0  # deviations from which a difference counts, and how much it must be:
_SEEN = {TRAIN_LOSS: 0.01, HELD_OUT_LOSS: 0.01, GRAD_NORM: 0.03}
_FACTOR = 0.2  # of the logarithm of the gradient norm: a factor of 1.2
_STEADY = 0.1  # how far the logarithm of a constant factor varies
_AT_ONCE = 4  # updates after which a wrong update shows
_MUCH = 0.5  # nats
_LITTLE = 0.1
_NEVER = math.inf


@dataclass(frozen=True)
class _Course:
    """One figure over the marks. Signs: -1 lower than expected, 0 as expected, 1 higher."""

    first: float
    """The first mark at which a difference is seen."""
    sign: int
    """Of that difference."""
    last: int
    """Sign at the last mark."""
    size: float
    """The largest difference that is seen."""
    steady: float
    """The difference, if it is about the same at every mark; else 0."""

    @property
    def at_start(self) -> int:
        """Sign before anything was learned."""
        return self.sign if self.first <= 1 else 0


@dataclass(frozen=True)
class _Observed:
    """What is seen of a run."""

    loss: _Course
    norm: _Course
    validation: _Course
    other_tokens: float
    """The first mark at which other tokens were trained on."""
    tokens_known: bool
    """Whether that can be told."""
    gap: float
    """How much further above what was expected validation is than training, at the last mark that
    has both."""

    @property
    def starts_alike(self) -> bool:
        """Whether loss and gradient of the initial weights are as expected."""
        return not (self.loss.at_start or self.norm.at_start or self.validation.at_start)

    @property
    def same_tokens(self) -> bool:
        """As far as is known."""
        return self.other_tokens == _NEVER


@dataclass(frozen=True)
class _Cause:
    text: str
    """What it may be."""
    needed: Callable[[_Observed], bool]
    """Otherwise it is not the cause."""
    signature: tuple[Callable[[_Observed], bool], ...]


_CAUSES = (
    _Cause(
        "another data order (shuffling is off, other data or another seed's order)",
        lambda o: o.other_tokens <= 1,
        (lambda o: not o.loss.at_start,),
    ),
    _Cause(
        "the data stream jumps, repeats or is not shuffled (a part is read again)",
        lambda o: 1 < o.other_tokens < _NEVER or (not o.tokens_known and o.gap > _LITTLE),
        (lambda o: o.starts_alike, lambda o: o.loss.last <= 0),
    ),
    _Cause(
        "gradients are summed, not averaged, over micro-batches or ranks (or a loss scale)",
        lambda o: abs(o.norm.steady) > _FACTOR,
        (
            lambda o: not o.loss.at_start,
            lambda o: o.loss.size < _LITTLE,
            lambda o: o.validation.size < _LITTLE,
        ),
    ),
    _Cause(
        "other initial weights or another network (deviation, a tied head, a missing norm)",
        lambda o: o.same_tokens and (o.loss.at_start != 0 or o.norm.first < o.loss.first),
        (
            lambda o: o.loss.at_start != 0 or o.norm.at_start == 0,
            lambda o: abs(o.norm.size) > _FACTOR,
            lambda o: abs(o.norm.steady) < _FACTOR,
        ),
    ),
    _Cause(
        "the learning rate is too high (or the warm-up is missing)",
        lambda o: o.starts_alike and o.loss.sign < 0 and o.loss.first <= 2 * _AT_ONCE,
        (
            lambda o: o.same_tokens,
            lambda o: o.norm.first >= o.loss.first,
            lambda o: abs(o.loss.size) > _LITTLE,
        ),
    ),
    _Cause(
        "the learning rate is too low (or updates are lost)",
        lambda o: o.starts_alike and o.loss.sign > 0 and o.loss.first <= 2 * _AT_ONCE,
        (
            lambda o: o.same_tokens,
            lambda o: o.validation.last >= 0,
            lambda o: abs(o.loss.size) > _LITTLE,
        ),
    ),
    _Cause(
        "the batch is smaller than it says (windows or ranks are left out)",
        lambda o: o.norm.last > 0 and o.loss.last > 0 and not o.loss.at_start,
        (
            lambda o: o.same_tokens,
            lambda o: o.norm.at_start > 0,
            lambda o: o.validation.last >= 0,
            lambda o: o.loss.size < _MUCH,
            lambda o: abs(o.norm.steady) < _MUCH,
        ),
    ),
    _Cause(
        "targets are not the next tokens (an offset)",
        lambda o: o.loss.last > 0 and o.validation.last >= 0 and o.norm.at_start <= 0,
        (
            lambda o: o.same_tokens,
            lambda o: o.norm.at_start < 0,
            lambda o: not o.loss.at_start,
            lambda o: o.loss.size > _MUCH,
            lambda o: o.gap > _LITTLE,
        ),
    ),
    _Cause(
        "attention sees later tokens (no causal mask)",
        lambda o: o.loss.last < 0 and o.validation.last <= 0 and o.loss.size < -_LITTLE,
        (
            lambda o: o.starts_alike,
            lambda o: o.loss.first > _AT_ONCE,
            lambda o: o.loss.size < -_MUCH or o.validation.size < -_MUCH,
        ),
    ),
    _Cause(
        "another constant of the optimizer (momentum, beta, epsilon, weight decay)",
        lambda o: o.starts_alike and o.loss.first > 2,
        (
            lambda o: abs(o.loss.size) < _LITTLE,
            lambda o: abs(o.norm.size) < _FACTOR,
            lambda o: o.loss.first < _NEVER,
            lambda o: o.same_tokens,
        ),
    ),
    _Cause(
        "another number format (moments, weights or products rounded more)",
        lambda o: o.starts_alike and o.same_tokens,
        (lambda o: o.loss.first == _NEVER, lambda o: o.norm.first == _NEVER),
    ),
)


def likely_causes(results: Sequence[MarkResult]) -> list[str]:
    """At most three, the likeliest first; none if nothing is outside."""
    if not any(result.outside for result in results):
        return []
    seen = _observe(results)
    scored = [(_score(cause, seen), cause.text) for cause in _CAUSES if cause.needed(seen)]
    ranked = sorted(scored, key=lambda pair: -pair[0])
    return [text for score, text in ranked if score >= _LEAST_SCORE][:_MOST_NAMED]


def _score(cause: _Cause, seen: _Observed) -> float:
    """The share of the signature that is seen."""
    return sum(part(seen) for part in cause.signature) / len(cause.signature)


def _observe(results: Sequence[MarkResult]) -> _Observed:
    every = [one for result in results for one in result.comparisons]
    other = (float(result.mark) for result in results if result.other_data)
    both = [
        found[HELD_OUT_LOSS].difference - found[TRAIN_LOSS].difference
        for result in results
        if (found := {one.figure: one for one in result.comparisons}).keys()
        >= {HELD_OUT_LOSS, TRAIN_LOSS}
    ]
    return _Observed(
        loss=_course(every, TRAIN_LOSS),
        norm=_course(every, GRAD_NORM),
        validation=_course(every, HELD_OUT_LOSS),
        other_tokens=next(other, _NEVER),
        tokens_known=any(result.other_data is not None for result in results),
        gap=both[-1] if both else 0.0,
    )


def _course(every: Sequence[BandComparison], figure: str) -> _Course:
    comparisons = [one for one in every if one.figure == figure]
    seen = [
        one for one in comparisons if abs(one.z) >= _SEEN_Z and abs(one.difference) >= _SEEN[figure]
    ]
    if not seen:
        return _Course(_NEVER, 0, 0, 0.0, 0.0)
    middle = median(one.difference for one in comparisons)
    steady = all(
        abs(one.difference - middle) < _STEADY + _SEEN_Z * one.deviation for one in comparisons
    )
    last = seen[-1] if seen[-1] is comparisons[-1] else None
    return _Course(
        first=float(seen[0].mark),
        sign=_sign(seen[0]),
        last=0 if last is None else _sign(last),
        size=max((one.difference for one in seen), key=abs),
        steady=middle if steady else 0.0,
    )


def _sign(one: BandComparison) -> int:
    return 1 if one.z > 0 else -1
