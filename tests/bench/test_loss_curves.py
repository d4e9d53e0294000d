"""Tests of bench/loss_curves.py: which curves pass."""

import pytest

from bench.loss_curves import LAST, PLAIN, REFERENCE, verdicts_of


def test_an_optimisation_passes_only_if_it_differs_no_more_than_the_reference():
    curves = {
        PLAIN: [5.0] * LAST,
        REFERENCE: [5.01] * LAST,
        "near": [4.995] * LAST,
        "far": [5.02] * LAST,
    }
    verdicts = verdicts_of(curves)
    assert {name: found["passes"] for name, found in verdicts.items()} == {
        REFERENCE: True,
        "near": True,
        "far": False,
    }
    assert verdicts["near"]["shift"] == pytest.approx(-0.005)
