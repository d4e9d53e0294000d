"""How a loss is drawn: smoothing keeps start and mean, and the scale shows the end."""

import pytest

from train.reporting.curves import scale_of_end, smoothed


def test_smoothing_removes_noise_and_keeps_the_start_and_short_curves():
    positions, means = smoothed([3 + (-1) ** step for step in range(10_000)])
    assert len(positions) == 500
    assert positions[:2] == [0, 20]
    assert means[0] == 4  # the first value itself, which no later one pulls down
    assert all(abs(mean - 3) < 0.02 for mean in means[10:])
    assert smoothed([5.0, 4.0]) == ([0, 1], [5.0, 4.0])
    assert smoothed([]) == ([], [])


def test_the_scale_shows_the_ends_and_not_a_run_that_diverged():
    falling = [10 / (step + 1) + 3 for step in range(1000)]
    diverged = [10.0] * 1000
    low, high = scale_of_end([(falling, [3.5]), (falling, []), (diverged, [])])
    assert low < 3.01
    assert 3.1 < high < 4
    assert scale_of_end([([], [3.0])]) == pytest.approx((2.9995, 3.0105))
