"""Tests of bench/gpu/comparison.py: what was measured beside what was expected."""

from bench.gpu.comparison import compared, table_of
from bench.gpu.expectations import EXPECTATIONS
from bench.gpu.parts import CALLS

NAMES = {part.name for call in CALLS.values() for part in call}


def rows(**speeds):
    """Parts with these tokens per second."""
    return [
        {"name": name, "measured": {"tokens_per_second": speed}} for name, speed in speeds.items()
    ]


def test_every_expectation_is_of_a_part_and_has_a_range_that_can_be_met():
    for expectation in EXPECTATIONS:
        assert expectation.value[0] in NAMES
        assert not expectation.over or expectation.over[0] in NAMES
        for low, high in filter(None, (expectation.h200, expectation.h100)):
            assert low <= high


def test_a_number_outside_of_its_range_says_what_to_do():
    parts = rows(reference=430_000, fused=438_000)
    table = table_of(parts, "NVIDIA H200")
    (speed,) = [line for line in table.splitlines() if "tokens/s of the reference" in line]
    assert "| 430,000 | 460,000 to 540,000 | **unexpected**: compare the lines" in speed
    (fused,) = [line for line in table.splitlines() if "fused loss, times" in line]
    assert "| 1.019 | 1.012 to 1.025 |  |" in fused


def test_each_card_has_its_own_expectation_and_an_unknown_one_none():
    parts = rows(reference=430_000)
    assert compared(parts, "NVIDIA H100 80GB HBM3")[0].agrees
    assert not compared(parts, "NVIDIA H200")[0].agrees
    assert compared(parts, "cpu")[0].expected is None


def test_what_was_not_measured_has_no_row():
    assert compared([{"name": "reference", "left_out": "no time was left"}], "NVIDIA H200") == []
    assert len(compared(rows(fused=1.0), "NVIDIA H200")) == 0
