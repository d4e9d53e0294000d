"""Runs with dropout: resumed bit for bit, and the same on any number of ranks."""

from dataclasses import replace

import pytest
import torch

import train.step
from tests.runs import (
    KEEP_ALL,
    NANO,
    alone,
    final_bytes,
    forget_after,
    losses,
    nano_config,
    run_to_end,
)
from train.batch_plan import BatchPlan
from train.build import build_learner, new_network
from train.config import Config
from train.step import LOSS, StepBatch

DROPPING = replace(NANO, dropout=0.2)


def steps_of(monkeypatch, micro_batch, world_size=1, rank=0, first_window=64):
    """The keys of one rank's micro-batches and its loss; all ranks have the same eight windows."""
    config = Config(model=DROPPING, seed=5)
    plan = BatchPlan(NANO.context_length, 8, micro_batch, world_size)
    ranks = alone()
    learner = build_learner(config, new_network(config, DROPPING, ranks), plan, ranks)
    learner.ranks = learner.reduction.ranks = replace(ranks, rank=rank, world_size=world_size)
    keys, original = [], train.step.set_random_state
    monkeypatch.setattr(train.step, "set_random_state", lambda k: keys.append(k) or original(k))
    ids = torch.arange(8 * 17, dtype=torch.int16).view(8, 17)
    own = torch.cat([ids[r.start : r.stop] for r in plan.windows_of(rank)])
    loss = float(learner.step(StepBatch(first_window, 0, own), lr=0.1)[LOSS])
    monkeypatch.setattr(train.step, "set_random_state", original)
    return keys, loss


def test_two_ranks_drop_together_what_one_rank_drops(monkeypatch):
    keys, loss = steps_of(monkeypatch, 2)
    halves = [steps_of(monkeypatch, 2, 2, rank) for rank in (0, 1)]
    assert [*halves[0][0], *halves[1][0]] == [*keys[::2], *keys[1::2]]
    assert len(set(keys)) == 4
    assert sum(part for _, part in halves) == pytest.approx(loss, rel=1e-6)
    assert not set(keys) & set(steps_of(monkeypatch, 2, first_window=72)[0])


def test_a_resumed_run_drops_the_same_numbers_bit_for_bit(tmp_path):
    config = nano_config(tmp_path, model=DROPPING, save=KEEP_ALL, steps=6)
    run_to_end(config)
    whole, weights = losses(config.out), final_bytes(config.out)
    forget_after(config.out, 4)
    run_to_end(config)
    assert (losses(config.out), final_bytes(config.out)) == (whole, weights)


def test_another_share_in_a_resumed_run_must_be_named(tmp_path):
    config = nano_config(tmp_path, model=DROPPING, save=KEEP_ALL, steps=4)
    run_to_end(config)
    whole = losses(config.out)
    forget_after(config.out, 2)
    other = replace(config, model=replace(DROPPING, dropout=0.0))
    with pytest.raises(ValueError, match=r"model\.dropout: 0\.2 -> 0\.0.*--allow model\.dropout"):
        run_to_end(other)
    run_to_end(replace(other, allow=("model.dropout",)))
    assert losses(config.out)[:2] == whole[:2]
    assert losses(config.out)[2] != whole[2]
