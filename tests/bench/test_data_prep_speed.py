"""Tests of bench/data_prep_speed.py: its table for a source of little text."""

from bench.data_prep_speed import METHODS, table


def test_a_rest_that_took_no_time_has_no_ratio():
    run = {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 90.0, "tokens": 100, "text_bytes": 400}
    same = {method: [run] for method in METHODS}
    row = table({"third": same, "whole": same}).splitlines()[-1]
    assert row.endswith("| 90 | 0.00 | - | - | - |")
