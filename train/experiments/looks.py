"""When is judged while the runs come in: after few numbers of pairs, fixed beforehand.

Whoever tests after each pair and stops at the first success finds differences that are none: the
chance of error adds up. Here the error rate is divided among the looks (Bonferroni), so that over
all of them it is at most the whole, whatever the looks have in common. Where A and B do not differ
at all, their differences are symmetric; then that holds for heavy tails too. Differences that are
zero in the mean and skew (B is a little better on most seeds and much worse on few) are told apart
more often: in one of seven judgements for exponential ones (bench/results/judge_calibration.md).
"""

from dataclasses import dataclass

# From one to the next about 1.6 times as many, so that at most that factor is run in vain.
_LOOKS = (3, 5, 8, 12, 20, 32, 50, 80)
LEAST_PAIRS = 2
"""One pair has no deviation."""


@dataclass(frozen=True)
class LookPlan:
    """The numbers of pairs after which is judged, and the error rate of each judgement."""

    looks: tuple[int, ...]
    error_rate: float
    """Of all looks together."""

    @property
    def error_rate_of_look(self) -> float:
        """The error rate of one look."""
        return self.error_rate / len(self.looks)


def one_look(pairs: int, error_rate: float) -> LookPlan:
    """A single judgement after all pairs."""
    return LookPlan((pairs,), error_rate)


def looks_until(most: int, error_rate: float) -> LookPlan:
    """Judgements after 3, 5, 8, 12, 20, … pairs, the last one after `most`."""
    return LookPlan((*(look for look in _LOOKS if look < most), most), error_rate)
