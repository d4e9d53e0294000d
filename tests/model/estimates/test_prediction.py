"""The predicted speed is the assumed utilisation of the peak."""

from dataclasses import replace

import pytest
import torch

from model.estimates.flops import forward_flops, training_flops_per_token
from model.estimates.memory import StepShape
from model.estimates.prediction import predict
from model.estimates.updates import muon_update
from model.shapes import SHAPES

BATCH = 524_288


def test_predicted_speed_is_the_assumed_utilisation_by_our_own_formula():
    step = StepShape(micro_batch=8, world_size=8)
    found = predict(SHAPES["gpt2"], step, BATCH, "NVIDIA H200", mfu=0.5)
    spent = found.tokens_per_second * training_flops_per_token(SHAPES["gpt2"])
    assert spent == pytest.approx(0.5 * 8 * 989e12)


def test_no_speed_is_predicted_for_a_device_without_a_peak():
    found = predict(SHAPES["demo"], StepShape(4, torch.float32, False, device="cpu"), 2048)
    assert found.tokens_per_second is None


def test_the_update_takes_its_share_of_every_rank_s_time():
    modern = SHAPES["modern"]
    update = muon_update(modern)
    passes = training_flops_per_token(modern) * BATCH
    for ranks, share in ((1, 0.0036), (8, 0.028)):
        step = StepShape(micro_batch=8, world_size=ranks, update=update)
        found = predict(modern, step, BATCH, "NVIDIA H200", mfu=0.5)
        assert found.update_share == pytest.approx(share, rel=0.02)
        seconds = BATCH / found.tokens_per_second
        assert seconds == pytest.approx((passes / ranks + update.flops) / (0.5 * 989e12))


def test_blocks_that_are_computed_again_take_their_forward_pass_once_more():
    for name, slower in (("gpt2", 0.24), ("gpt2-xl", 0.31)):
        shape, step = SHAPES[name], StepShape(micro_batch=8)
        plain, again = (
            predict(shape, own, BATCH, "NVIDIA H200").tokens_per_second or 0
            for own in (step, replace(step, recompute=True))
        )
        assert plain / again - 1 == pytest.approx(slower, abs=0.01)
        forward = forward_flops(shape)
        blocks = (sum(forward.values()) - forward["head"]) / shape.context_length
        extra = blocks / training_flops_per_token(shape)
        assert plain / again - 1 == pytest.approx(extra, rel=0.01)
