"""Whether two ways of scoring multiple choice agree, item by item, but for rounding.

Items and nats of every ending go in, numbers come out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.scoring.multiple_choice import Item

# Two scores so close, as a share of themselves, are a float tie: float32 rounds each loss of a
# token to 6e-8 of itself, and sums and matrix products add up some tens of such roundings.
TIE = 1e-5


def scores_of(
    items: Sequence[Item], nats: np.ndarray, encode: Callable[[str], list[int]]
) -> dict[str, np.ndarray]:
    """What the smallest of decides: the sum, and the mean in the style of the items.

    Shapes: (items, endings) each.
    """
    lengths = [[len(e) if i.harness else len(encode(" " + e)) for e in i.endings] for i in items]
    return {"acc": nats, "acc_norm": nats / np.maximum(lengths, 1)}


def accuracies(items: Sequence[Item], scores: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of items whose right ending has the smallest score, by tag."""
    labels = np.array([item.label for item in items])
    return {tag: float((found.argmin(1) == labels).mean()) for tag, found in scores.items()}


def agreement(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far the losses lie apart at most, and the items on which the choices differ, by tag.

    Those among them whose two chosen endings have the same score in either way, but for rounding,
    are float ties.
    """
    gaps = np.abs(ours["acc"] - theirs["acc"])
    found: dict[str, Any] = {"largest_difference": float(gaps.max())}
    for tag, one in ours.items():
        other = theirs[tag]
        items = np.flatnonzero(one.argmin(1) != other.argmin(1))
        choices = np.stack((one[items].argmin(1), other[items].argmin(1)), axis=1)
        tied = np.zeros(len(items), bool)
        for scores in (one, other):
            a, b = np.take_along_axis(scores[items], choices, axis=1).T
            tied |= np.isclose(a, b, rtol=TIE, atol=0)
        found[tag] = {"other_choices": items.tolist(), "float_ties": items[tied].tolist()}
    return found
