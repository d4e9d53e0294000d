"""Tests of bench/data_prep_speed.py: its table for a source of little text, and its turns."""

from bench.data_prep_table import METHODS, table


def test_a_rest_that_took_no_time_has_no_ratio():
    run = {"seconds": 2.0, "cpu_seconds": 1.0, "peak_mb": 90.0, "tokens": 100, "text_bytes": 400}
    same = {method: [run] for method in METHODS}
    row = table({"third": same, "whole": same}).splitlines()[-1]
    assert row.endswith("| 90 | 0.00 | - | - | - |")


def test_the_ratio_of_cpu_time_is_that_of_turns_with_its_range():
    def turns(*cpu):
        same = {"seconds": 2.0, "peak_mb": 90.0, "tokens": 100, "text_bytes": 400}
        return [same | {"cpu_seconds": seconds} for seconds in cpu]

    found = {"old": turns(3.0, 2.0, 1.0), "auto": turns(2.0, 2.0, 2.0)}
    rows = table({"third": found, "whole": found}).splitlines()
    assert " | 1.000 (1.000 to 1.000) | " in rows[-2]
    assert " | 2.0 | 1.000 (0.500 to 1.500) | " in rows[-1]
