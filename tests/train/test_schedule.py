"""The learning rate stays within its bounds, has no jumps and ends at the right value."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import ScheduleConfig, learning_rate

configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_steps=st.integers(0, 50),
    min_lr_ratio=st.floats(0, 1),
)


@given(configs, st.integers(60, 300))
def test_the_rate_is_within_bounds_and_never_jumps(config, steps):
    rates = [learning_rate(step, steps, 1.0, config) for step in range(steps)]
    assert all(0 < rate <= 1 + 1e-9 for rate in rates)
    largest_jump = max(abs(a - b) for a, b in pairwise(rates))
    assert largest_jump <= 1 / max(config.warmup_steps, 1) + 4 / (steps - config.warmup_steps)


def test_the_reference_run_warms_up_peaks_and_ends_at_a_tenth():
    config = ScheduleConfig()
    assert learning_rate(0, 19073, 6e-4, config) == pytest.approx(6e-4 / 715)
    assert learning_rate(714, 19073, 6e-4, config) == pytest.approx(6e-4)
    assert learning_rate(19073, 19073, 6e-4, config) == pytest.approx(6e-5)


@pytest.mark.parametrize(("field", "value"), [("warmup_steps", -1), ("min_lr_ratio", 1.5)])
def test_impossible_schedules_are_refused(field, value):
    with pytest.raises(ValueError, match=f"schedule.{field}={value}"):
        ScheduleConfig(**{field: value})
