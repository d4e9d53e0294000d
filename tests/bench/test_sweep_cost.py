"""Tests of bench/sweep_cost.py: what follows from the CPU times of a sweep and of its runs."""

import pytest

from bench.sweep_cost import figures


def test_what_a_sweep_adds_and_saves_follows_from_the_times_of_its_processes():
    alone = [{"own": 20.0, "warm": 0.0, "rest": 0.0}] * 3
    found = figures({"sweep": {"own": 5.0, "warm": 4.0, "rest": 48.0}, "alone": alone}, steps=90)
    assert (found["runs"], found["run_alone"], found["run_in_sweep"]) == (3, 20.0, 16.0)
    assert found["saved_at_each_start"] == 4.0
    assert found["added_by_sweep"] == 9.0
    assert found["sweep_less_runs_alone"] == -3.0
    assert found["share_of_runs"] == pytest.approx(9 / 48)
    assert found["share_of_whole_demo_runs"] == pytest.approx(9 / 480)
