"""Tests of bench/document_masks.py: its ratios and differences."""

import pytest

from bench.document_masks import cost_of, loss_differences, table_of

STEPS = {"cpu_seconds": {"masked": [1.0, 1.2, 2.0, 2.4], "plain": [1.0, 1.0, 2.0, 2.0]}}
LEARNED = [
    {"steps": 9, "masked": {"within": 5.0, "across": 5.5}, "plain": {"within": 5.2, "across": 4.9}},
    {"steps": 9, "masked": {"within": 5.0, "across": 5.6}, "plain": {"within": 5.4, "across": 5.1}},
]


def test_the_ratio_is_of_rounds_and_the_differences_are_of_seeds():
    assert cost_of(STEPS).mean == pytest.approx(1.1)
    found = {name: round(one.mean, 6) for name, one in loss_differences(LEARNED).items()}
    assert found == {
        "each as it was trained": 0.0,
        "both within documents": -0.3,
        "both across the window": 0.55,
    }
    lines = table_of({"demo": STEPS}, LEARNED).splitlines()
    assert lines[2] == "| demo | 1.600 | 1.500 | 1.100 (1.100 to 1.100) | 2 |"
    assert lines[6] == "| each as it was trained | +0.0000 (-1.2706 to +1.2706) | 2 |"
