"""The batch plan: how the windows of a step are split over ranks and micro-steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.batch_plan import plan_batch, share_of
from train.config import Config
from train.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_divides_on_1_2_4_and_8_ranks_with_some_micro_batch(name):
    for world_size in (1, 2, 4, 8):
        assert plan_batch(PRESETS[name], world_size, 1).grad_accum_steps >= 1


@pytest.mark.fault("R3", injected="a batch that does not divide")
def test_a_batch_that_does_not_divide_is_refused_with_ones_that_do():
    with pytest.raises(ValueError, match=r"16 x 1024 x 6 .* = 98304; try .* 491520 or 589824"):
        plan_batch(Config(), 6, 16)


def test_without_a_micro_batch_the_suggested_batches_divide_well_too():
    with pytest.raises(ValueError, match=r"of 1024 x 6 .* = 6144; try .* 491520 or 589824$"):
        share_of(Config(), 6)
    with pytest.raises(ValueError, match=r"try --batch-tokens 1024$"):
        share_of(Config(batch_tokens=1000), 1)


def test_a_batch_smaller_than_one_micro_step_suggests_a_micro_batch_too():
    with pytest.raises(ValueError, match="try --batch-tokens 65536, or --micro-batch auto$"):
        plan_batch(Config(batch_tokens=16384), 1, 64)


@pytest.mark.parametrize(
    ("world_size", "micro_batch", "cure"),
    [
        (3, 1, "start 2 or 4, or give --reduction ddp"),
        (16, 1, "start 8, or give --reduction ddp"),
        (8, 2, "start 4, give --micro-batch 1, or give --reduction ddp"),
        (2, 24, "start 1, give --micro-batch 4, or give --reduction ddp"),
    ],
)
def test_ranks_that_cannot_share_a_tree_are_told_what_can(world_size, micro_batch, cure):
    config = Config(batch_tokens=24 * 1024, reduction="tree")
    with pytest.raises(ValueError, match=f"step over {world_size} processes: .*; {cure}$"):
        plan_batch(config, world_size, micro_batch)


def test_without_a_micro_batch_a_tree_of_three_ranks_is_refused_too():
    with pytest.raises(ValueError, match="power of two of processes, not 3; start 2 or 4, or give"):
        share_of(Config(reduction="tree"), 3)


@given(micro_batch=st.integers(1, 4), power=st.integers(0, 3), own=st.integers(1, 5))
def test_blocks_follow_one_another_and_take_each_window_once(micro_batch, power, own):
    world_size = 1 << power
    tokens = micro_batch * own * world_size * 1024
    plan = plan_batch(Config(batch_tokens=tokens, reduction="tree"), world_size, micro_batch)
    taken = [part for rank in range(world_size) for part in plan.windows_of(rank)]
    assert [window for part in taken for window in part] == list(range(plan.windows))
    assert {len(part) for part in taken} == {micro_batch}
    for rank in range(world_size):
        assert {plan.rank_of(w) for part in plan.windows_of(rank) for w in part} == {rank}


@given(
    micro_batch=st.integers(1, 9),
    world_size=st.integers(1, 9),
    accumulate=st.integers(1, 9),
    T=st.integers(1, 64),
)
def test_a_plan_uses_exactly_the_batch(micro_batch, world_size, accumulate, T):
    tokens = micro_batch * world_size * accumulate * T
    config = Config(batch_tokens=tokens, context_length=T)
    assert share_of(config, world_size) == micro_batch * accumulate
    plan = plan_batch(config, world_size, micro_batch)
    assert (plan.tokens, plan.grad_accum_steps) == (tokens, accumulate)
    assert plan.windows * T == tokens
