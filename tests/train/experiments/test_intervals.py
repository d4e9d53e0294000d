"""The confidence interval of a mean."""

import math

import pytest

from train.experiments.intervals import mean_interval


def test_the_interval_of_a_textbook_sample():
    """Five values; t of 4 degrees of freedom at 95 % is 2.776445."""
    found = mean_interval([9.0, 10.0, 11.0, 12.0, 13.0])
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert (found.mean, found.count) == (11.0, 5)
    assert found.deviation == pytest.approx(math.sqrt(2.5))
    assert (found.low, found.high) == pytest.approx((11 - half, 11 + half), rel=1e-6)
    assert found.half_width == pytest.approx(half, rel=1e-6)


def test_one_value_says_nothing_of_its_deviation():
    found = mean_interval([3.0])
    assert found.mean == 3.0
    assert found.low == -math.inf
    assert math.isnan(found.deviation)


def test_equal_values_have_no_width():
    assert mean_interval([2.0, 2.0]).half_width == 0


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no value"):
        mean_interval([])
