"""The learning rate stays within its bounds, has no jumps and ends at the right value."""

import math
from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.option_values import AtMost
from tests.runs import NANO, built, lines, nano_config
from train.loop import train
from train.optimizers.muon import MuonConfig
from train.presets import PRESETS
from train.schedule import ScheduleConfig, check_phases, fitted_warmup, learning_rate, phases

configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_steps=st.integers(0, 50),
    min_lr_ratio=st.floats(0, 1),
)


def rates(config, steps, lr=1.0):
    return [learning_rate(step, steps, lr, config) for step in range(steps)]


@given(configs, st.integers(60, 300))
def test_the_rate_is_within_bounds_and_never_jumps(config, steps):
    found = rates(config, steps)
    assert all(0 < rate <= 1 + 1e-9 for rate in found)
    largest_jump = max(abs(a - b) for a, b in pairwise(found))
    assert largest_jump <= 1 / max(config.warmup_steps, 1) + 4 / (steps - config.warmup_steps)


def rate_without_hold(step, steps, max_lr, config):
    """The rate as it was before there was a hold."""
    if step < config.warmup_steps:
        return max_lr * (step + 1) / config.warmup_steps
    progress = min((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 1.0)
    share = {
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": lambda: 1 - progress,
        "constant": lambda: 1.0,
    }[config.kind]()
    return max_lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


@given(configs, st.integers(1, 300), st.floats(1e-6, 1))
def test_a_schedule_without_hold_has_the_bits_that_it_had(config, steps, lr):
    before = [rate_without_hold(step, steps, lr, config) for step in range(steps + 2)]
    assert [learning_rate(step, steps, lr, config) for step in range(steps + 2)] == before


def test_the_reference_run_warms_up_peaks_and_ends_at_a_tenth():
    config = ScheduleConfig()
    assert learning_rate(0, 19073, 6e-4, config) == pytest.approx(6e-4 / 715)
    assert learning_rate(714, 19073, 6e-4, config) == pytest.approx(6e-4)
    assert learning_rate(19073, 19073, 6e-4, config) == pytest.approx(6e-5)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({}, (0, 0, 100)),
        ({"warmup_steps": 0.01, "hold": 0.3}, (1, 31, 100)),
        ({"warmup_steps": 10, "hold": 30}, (10, 40, 100)),
        ({"hold": 0.3, "decay": 0.2}, (0, 30, 50)),
        ({"hold": 1.0}, (0, 100, 100)),
        ({"hold": 1}, (0, 1, 100)),
        ({"warmup_steps": 10, "decay": 0.2}, (10, 80, 100)),
        ({"warmup_steps": 10, "decay": 90}, (10, 10, 100)),
        ({"hold": 0.3, "decay": 70}, (0, 30, 100)),
        ({"hold": 0.3, "kind": "constant"}, (0, 100, 100)),
    ],
)
def test_a_length_is_a_number_of_steps_or_with_a_point_a_share_of_the_run(lengths, expected):
    assert astuple(phases(100, ScheduleConfig(**{"warmup_steps": 0, **lengths}))) == expected


@given(st.integers(1, 5000), st.integers(0, 100), st.integers(0, 100))
def test_shares_that_are_all_of_a_run_fit_every_run(steps, a, b):
    warmup, hold = min(a, b) / 101, abs(a - b) / 101
    decay = (101 - max(a, b)) / 101
    found = phases(steps, ScheduleConfig(warmup_steps=warmup, hold=hold, decay=decay))
    assert found.decay_end == steps
    assert 0 <= found.warmup_end <= found.decay_start <= steps


@pytest.mark.parametrize(
    ("kind", "middle"), [("linear", 0.5), ("cosine", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))]
)
def test_the_rate_holds_then_decays_by_its_kind_to_the_last_rate(kind, middle):
    config = ScheduleConfig(kind, warmup_steps=4, hold=6, decay=10, min_lr_ratio=0.2)
    found = rates(config, 25, lr=2.0)
    assert found[:4] == [0.5, 1.0, 1.5, 2.0]
    assert found[4:11] == [2.0] * 7  # the first step of the decay still has the largest rate
    assert found[15] == pytest.approx(2.0 * (0.2 + 0.8 * middle))
    assert found[20:] == [pytest.approx(0.4)] * 5
    assert all(a > b for a, b in pairwise(found[10:21]))


@pytest.mark.parametrize(
    ("lengths", "cure"),
    [
        ({"warmup_steps": 20, "hold": 0.9}, "--schedule.hold 80 or less"),
        ({"warmup_steps": 0, "hold": 0.5, "decay": 0.6}, "--schedule.hold 40 or less"),
        ({"warmup_steps": 20, "decay": 0.9}, "--schedule.decay 80 or less"),
        ({"warmup_steps": 20, "hold": 5, "decay": 200}, "--schedule.decay 80 or less"),
        ({"warmup_steps": 1.0}, "--schedule.warmup-steps 10 or less"),
        ({"warmup_steps": AtMost(715), "hold": 1.0}, "--schedule.hold 90 or less"),
        ({"warmup_steps": AtMost(715), "hold": 0.5, "decay": 0.5}, "--schedule.hold 40 or less"),
    ],
)
def test_phases_that_exceed_the_run_are_refused_with_the_largest_that_fits(lengths, cure):
    with pytest.raises(ValueError, match=f"steps of 100; give {cure}$"):
        fitted_warmup(100, ScheduleConfig(**lengths))


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1) | st.integers(0, 200),
    st.floats(0, 1) | st.integers(0, 200) | st.none(),
)
def test_the_cure_of_phases_that_exceed_the_run_is_one(steps, warmup, hold, decay):
    config = ScheduleConfig(warmup_steps=warmup, hold=hold, decay=decay)
    for _ in range(3):  # one sentence shortens one length
        try:
            check_phases(steps, config)
        except ValueError as error:
            flag, value = str(error).split("--schedule.")[1].split()[:2]
            names = {flag.replace("-", "_"): int(value)}
            config = ScheduleConfig(**{**vars(config), **names})
    check_phases(steps, config)


def test_steps_that_would_learn_nothing_are_refused_with_the_hold_that_leaves_none():
    modern = PRESETS["modern"]
    told = "leave 1625 of 3250 steps with a learning rate of 0; give --schedule.hold 2600, or"
    with pytest.raises(ValueError, match=told):
        replace(modern, schedule=replace(modern.schedule, decay=0.2))
    replace(modern, schedule=replace(modern.schedule, decay=0.2, hold=2600))
    replace(modern, schedule=replace(modern.schedule, decay=0.2, min_lr_ratio=0.1))


def test_a_presets_warm_up_is_shortened_where_hold_and_decay_leave_less():
    config = ScheduleConfig(warmup_steps=AtMost(715), hold=0.5, decay=0.4)
    assert [fitted_warmup(n, config) for n in (1000, 7150, 8000)] == [100, 715, 715]
    assert fitted_warmup(1000, ScheduleConfig(warmup_steps=AtMost(715), hold=0.3)) == 100
    assert type(fitted_warmup(8000, config)) is int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("warmup_steps", -1), ("min_lr_ratio", 1.5), ("hold", 1.5), ("hold", -1)),
        *(("decay", -0.1), ("decay", math.nan), ("warmup_steps", math.inf), ("hold", 10**13)),
    ],
)
def test_impossible_schedules_are_refused(field, value):
    with pytest.raises(ValueError, match=f"schedule.{field}={value}"):
        ScheduleConfig(**{field: value})


def test_each_group_of_parameters_follows_the_schedule_from_its_own_largest_rate(tmp_path):
    schedule = ScheduleConfig("linear", warmup_steps=0, hold=0.3, min_lr_ratio=0.0)
    network = replace(NANO, tied=False)
    config = nano_config(
        tmp_path, steps=20, model=network, optimizer=MuonConfig(), schedule=schedule
    )
    run, seen = built(config), []
    optimizer = run.learner.optimizer
    optimizer.register_step_post_hook(
        lambda *_: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    train(run)
    run.close()
    seen = seen[-20:]  # before them are the updates that lay out the buckets
    largest = [0.025, 0.7, 0.004, 0.015]  # matrices, embeddings, head, vectors
    for step, share in ((0, 1.0), (6, 1.0), (13, 0.5), (19, 1 / 14)):
        assert seen[step] == pytest.approx([share * rate for rate in largest])
    assert [line["train/lr"] for line in lines(config.out)[:20]] == [group[0] for group in seen]
