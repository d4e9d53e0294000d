"""The same tokens in the same step, whoever reads them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows
from parallel.ranks import Ranks
from tests.data_sets import tiny_data_set
from train.batch_plan import BatchPlan
from train.loader import Loader
from train.step import ids_and_targets, join_digest, split_digest


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_data_set(tmp_path_factory.mktemp("data") / "set", documents=40).split("train")


def ranks(rank, world_size):
    return Ranks(rank, world_size, rank, world_size, torch.device("cpu"))


def steps_of(shards, plan, first_window, count):
    """What each step holds over all ranks: windows in order of micro-batch, and the digest."""
    loaders = [
        Loader(
            OneSource(TrainingStream(shards, 5)), plan, ranks(rank, plan.world_size), first_window
        )
        for rank in range(plan.world_size)
    ]
    steps = []
    for _ in range(count):
        shares = [loader.next_step() for loader in loaders]
        cut = [share.micro_batches(plan.micro_batch) for share in shares]
        joined = torch.stack(cut, dim=1)  # (A, ranks, mb, T + 1)
        windows = joined.reshape(plan.windows, -1).numpy().view(np.uint16)
        digest = join_digest(sum(split_digest(share.digest) for share in shares))
        steps.append((windows, digest))
    for loader in loaders:
        loader.close()
    return steps


@settings(deadline=None, max_examples=20)
@given(
    micro_batch=st.sampled_from([1, 2, 4]),
    world_size=st.sampled_from([1, 2, 4]),
    first=st.integers(0, 200),
)
def test_a_step_holds_the_same_windows_for_any_ranks_and_micro_batch(
    shards, micro_batch, world_size, first
):
    plan = BatchPlan(8, 16, micro_batch, world_size)
    reference = steps_of(shards, BatchPlan(8, 16, 16, 1), first, 3)
    for (own, own_digest), (other, other_digest) in zip(
        steps_of(shards, plan, first, 3), reference, strict=True
    ):
        assert np.array_equal(own, other)
        assert own_digest == other_digest


def test_resuming_is_starting_at_the_cursor(shards):
    plan = BatchPlan(8, 4, 2, 1)
    straight = steps_of(shards, plan, 0, 6)
    resumed = steps_of(shards, plan, 4 * plan.windows, 2)
    assert [digest for _, digest in straight[4:]] == [digest for _, digest in resumed]


def test_micro_steps_are_inputs_and_their_next_tokens(shards):
    stream = OneSource(TrainingStream(shards, 5))
    loader = Loader(stream, BatchPlan(8, 4, 2, 1), ranks(0, 1), 0)
    ids, targets = ids_and_targets(loader.next_step().micro_batches(2)[1])
    loader.close()
    windows = torch.from_numpy(read_windows(stream, 2, 2, 8).astype(np.int64))
    assert torch.equal(ids, windows[:, :-1])
    assert torch.equal(targets, windows[:, 1:])


def test_ids_above_32767_survive_the_two_byte_journey(tmp_path):
    data = tiny_data_set(tmp_path / "set", documents=40)
    stream = OneSource(TrainingStream(data.split("train"), 0))
    loader = Loader(stream, BatchPlan(8, 64, 64, 1), ranks(0, 1), 0)
    ids, _ = ids_and_targets(loader.next_step().windows)
    loader.close()
    assert 32767 < ids.max() < 50257
    assert ids.min() >= 0


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=64))
def test_digests_add_up_over_ranks_modulo_two_to_the_64(digests):
    total = sum(split_digest(digest) for digest in digests)
    assert join_digest(total) == sum(digests) % 2**64
