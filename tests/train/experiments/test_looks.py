"""Judgements at several looks: the chance of error over all of them, and what is found."""

import numpy as np
import pytest
from scipy import stats

from train.experiments.looks import looks_until, one_look

PLAN = looks_until(20, 0.05)
COUNT = 4000


def told_apart(differences):
    """In which rows a look tells A and B apart; a row has the differences of 20 pairs."""
    found = np.zeros(len(differences), bool)
    for look in PLAN.looks:
        p = stats.ttest_1samp(differences[:, :look], 0.0, axis=1).pvalue
        found |= p < PLAN.error_rate_of_look
    return found.mean()


def noise(kind):
    """Differences of pairs that do not differ: symmetric, as exchanging A and B changes nothing."""
    generator, shape = np.random.default_rng(7), (COUNT, 20)
    draw = {
        "normal": lambda: generator.standard_normal(shape),
        "t with 2 degrees": lambda: generator.standard_t(2, shape),
        "one in ten five times": lambda: (
            generator.standard_normal(shape) * np.where(generator.random(shape) < 0.1, 5, 1)
        ),
        "of skewed losses": lambda: (
            generator.exponential(1, shape) - generator.exponential(1, shape)
        ),
        "mostly equal": lambda: (
            generator.standard_normal(shape) * (generator.random(shape) < 0.3)
            + 1e-9 * generator.standard_normal(shape)
        ),
    }
    return draw[kind]()


@pytest.mark.parametrize(
    "kind",
    ["normal", "t with 2 degrees", "one in ten five times", "of skewed losses", "mostly equal"],
)
def test_over_all_looks_noise_is_told_apart_in_at_most_five_of_a_hundred(kind):
    assert told_apart(noise(kind)) <= 0.05


def test_a_difference_as_large_as_the_deviation_is_found_in_nine_of_ten():
    assert told_apart(noise("normal") + 1) > 0.9
    assert told_apart(noise("normal") + 2) > 0.999


def test_the_looks_end_with_the_most_pairs_and_share_the_error_rate():
    assert PLAN.looks == (3, 5, 8, 12, 20)
    assert looks_until(6, 0.05).looks == (3, 5, 6)
    assert looks_until(2, 0.05).looks == (2,)
    assert looks_until(500, 0.05).looks[-1] == 500
    assert PLAN.error_rate_of_look == pytest.approx(0.01)
    assert one_look(7, 0.05).error_rate_of_look == 0.05
