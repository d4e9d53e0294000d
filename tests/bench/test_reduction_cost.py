"""Tests of bench/reduction_cost.py: its ratio and tables. It checks each sum itself."""

import pytest

from bench.reduction_cost import ratio, table_of

STEPS = {
    "cpu_seconds": {"tree": [1.0, 1.2, 2.0, 2.4], "ddp": [1.0, 1.0, 2.0, 2.0]},
    "clock_seconds": {"tree": [3.0, 3.0, 3.0, 3.0], "ddp": [2.0, 2.0, 2.0, 2.0]},
}


def test_the_ratio_is_of_rounds_so_that_a_slow_round_counts_no_more():
    found = ratio(STEPS)
    assert (found.mean, found.count) == (pytest.approx(1.1), 2)
    assert found.low == found.high == pytest.approx(1.1)
    assert ratio(STEPS, "clock_seconds").mean == 1.5


def test_the_tables_have_a_row_for_each_step_and_each_way_to_sum():
    times = {"all-reduce": [0.1, 0.3], "halving and doubling": [0.2, 0.2]}
    sums = {"bytes": 120_000_000, "ranks": 4, "cpu_seconds": times, "clock_seconds": times}
    lines = table_of({"demo": STEPS, "sum-4": sums}).splitlines()
    assert lines[2] == "| demo | 1.600 | 1.500 | 1.100 (1.100 to 1.100) | 2 |"
    assert lines[4] == "| sum of 120 MB on 4 ranks, median of 2 | CPU s | clock s |"
    assert lines[6:] == [
        "| all-reduce | 0.200 | 0.200 |",
        "| halving and doubling | 0.200 | 0.200 |",
    ]
