"""Two groups of runs: told apart or not, and how many pairs that takes."""

import numpy as np
import pytest
from scipy import stats

from train.experiments.paired_test import (
    compare_groups,
    compare_pairs,
    pairs_needed,
    smallest_seen,
)

A = [4.20, 4.25, 4.18, 4.30, 4.22]
B = [4.19, 4.23, 4.17, 4.28, 4.21]


def test_pairs_are_told_apart_where_the_groups_are_not():
    """The differences are -0.01 or -0.02; the seeds deviate four times as much."""
    paired, alone = compare_pairs(A, B), compare_groups(A, B)
    assert paired.told_apart
    assert not alone.told_apart
    assert (paired.interval.mean, alone.interval.mean) == pytest.approx((-0.014, -0.014))
    assert paired.p_value == pytest.approx(stats.ttest_rel(B, A).pvalue)
    assert alone.p_value == pytest.approx(stats.ttest_ind(B, A, equal_var=False).pvalue)


@pytest.mark.parametrize("compare", [compare_pairs, compare_groups])
def test_the_interval_touches_zero_where_the_p_value_is_the_error_rate(compare):
    found = compare(A, B, error_rate=compare(A, B).p_value)
    assert found.interval.high == pytest.approx(0, abs=1e-9)


def test_the_same_bits_are_named_and_a_single_pair_says_nothing():
    same = compare_pairs(A, A)
    assert (same.identical, same.told_apart, same.p_value) == (True, False, 1.0)
    assert same.is_within(1e-6)
    single = compare_pairs([4.0], [3.0])
    assert (single.told_apart, single.identical, single.is_within(100)) == (False, False, False)


def test_equal_differences_have_no_deviation_and_are_told_apart():
    found = compare_pairs([1.0, 2.0], [1.5, 2.5])
    assert (found.told_apart, found.p_value) == (True, 0.0)


@pytest.mark.parametrize(
    ("compare", "a", "b"), [(compare_pairs, [1.0], [1.0, 2.0]), (compare_groups, [1.0], [1.0, 2.0])]
)
def test_groups_that_cannot_be_compared_are_an_error(compare, a, b):
    with pytest.raises(ValueError, match="1 and 2 values"):
        compare(a, b)


def test_the_pairs_needed_find_the_difference_in_nine_of_ten_samples():
    """Cohen's tables have 44 pairs for half a deviation at 5 % and 90 %."""
    needed = pairs_needed(0.5, 1.0)
    assert needed in (44, 45)
    assert smallest_seen(1.0, needed) == pytest.approx(0.5, rel=0.02)
    values = np.random.default_rng(0).normal(0.5, 1.0, (2000, needed))
    found = stats.ttest_1samp(values, 0.0, axis=1).pvalue < 0.05
    assert 0.88 < found.mean() < 0.92


def test_a_large_difference_needs_few_pairs_and_a_tiny_one_too_many():
    assert pairs_needed(1.0, 0.1) == 3
    assert pairs_needed(1e-6, 1.0) is None
    assert pairs_needed(1.0, 0.0) == 2
