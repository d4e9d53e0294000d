"""Tokens and seconds to equal loss, from curves that are known."""

import math
from dataclasses import replace

import pytest

from tests.made_runs import made_run
from train.experiments.equal_loss import mean_ratio, ratio_of_seconds, ratio_of_tokens
from train.reporting.run_summary import Curve, summarize_run


def run_with(tmp_path, losses, seconds_per_token=1.0):
    """A run that was validated every 10 tokens."""
    path = tmp_path / "run"
    base = summarize_run(path if path.exists() else made_run(path), "run")
    tokens = [10.0 * n for n in range(len(losses))]
    return replace(base, val_curve=Curve(tokens, [seconds_per_token * t for t in tokens], losses))


def test_what_the_better_run_needs_is_read_between_its_points(tmp_path):
    """A ends at 3; B is at 3.5 after 30 tokens and at 2.5 after 40, so at 3 after 35 of 50."""
    a = run_with(tmp_path, [8, 6, 5, 4, 3.5, 3])
    b = run_with(tmp_path, [8, 5, 4, 3.5, 2.5, 2], seconds_per_token=2)
    assert ratio_of_tokens(a, b) == pytest.approx(35 / 50)
    assert ratio_of_seconds(a, b) == pytest.approx(70 / 50)


def test_exchanging_the_runs_inverts_the_ratio(tmp_path):
    a = run_with(tmp_path, [8, 6, 5, 4, 3.5, 3])
    b = run_with(tmp_path, [8, 5, 4, 3.5, 2.5, 2])
    assert ratio_of_tokens(b, a) == pytest.approx(1 / ratio_of_tokens(a, b))
    assert ratio_of_tokens(a, a) == 1


def test_of_a_curve_that_rises_again_the_first_point_counts(tmp_path):
    a = run_with(tmp_path, [8, 6, 5, 4, 3.5, 3])
    b = run_with(tmp_path, [8, 3, 6, 5, 4, 2.9])
    assert ratio_of_tokens(a, b) == pytest.approx(10 / 50)


def test_few_points_or_equal_loss_at_the_start_tell_nothing(tmp_path):
    a = run_with(tmp_path, [8, 6, 5, 4, 3.5, 3])
    assert ratio_of_tokens(a, run_with(tmp_path, [8, 5, 2])) is None
    assert ratio_of_tokens(a, run_with(tmp_path, [2, 2, 2, 2, 2, 2])) is None


def test_the_mean_of_ratios_is_geometric():
    found = mean_ratio([0.5, 2.0], 0.95)
    assert found.mean == pytest.approx(1)
    assert found.low * found.high == pytest.approx(1)
    assert mean_ratio([0.9], 0.95).high == math.inf
