"""Compares the answers of two methods of scoring multiple choice, item by item.

In: items, and the loss of every ending in nats by each method. Out: accuracies, differences, and
the items that the methods answer differently for another reason than rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.scoring.multiple_choice import Item

# Two scores with a smaller relative difference are a float tie: float32 rounds the loss of a token
# with a relative error of 6e-8, and sums and matrix products add up some tens of such errors.
_TIE = 1e-5


def scores_of(
    items: Sequence[Item], nats: np.ndarray, encode: Callable[[str], list[int]]
) -> dict[str, np.ndarray]:
    """The scores by tag; the smallest one decides. `acc`: the summed loss. `acc_norm`: its mean.

    The mean is over tokens in completion style and over characters in harness style.
    Shapes: (items, endings) each.
    """
    lengths = [[len(e) if i.harness else len(encode(" " + e)) for e in i.endings] for i in items]
    return {"acc": nats, "acc_norm": nats / np.maximum(lengths, 1)}


def accuracies(items: Sequence[Item], scores: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of items whose correct ending has the smallest score, by tag."""
    labels = np.array([item.label for item in items])
    return {tag: float((found.argmin(1) == labels).mean()) for tag, found in scores.items()}


def agreement(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The largest difference of two losses, and the items with different choices, by tag.

    Such an item is a float tie if one of the methods gives both chosen endings the same score,
    except for rounding.
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
            tied |= np.isclose(a, b, rtol=_TIE, atol=0)
        found[tag] = {"other_choices": items.tolist(), "float_ties": items[tied].tolist()}
    return found
