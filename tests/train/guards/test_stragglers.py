"""Slow ranks: found by their own compute time against that of the others."""

import pytest

from train.guards.stragglers import slow_ranks


@pytest.mark.parametrize(
    ("seconds", "slow"),
    [
        ([0.1, 0.1, 0.11, 0.1], []),
        ([0.1, 0.3], [1]),
        ([0.3, 0.1, 0.1, 0.2], [0, 3]),
        ([0.0, 9], []),
    ],
)
def test_a_rank_is_slow_compared_with_the_median_rank(seconds, slow):
    assert [int(text.split()[1]) for text in slow_ranks(seconds)] == slow
