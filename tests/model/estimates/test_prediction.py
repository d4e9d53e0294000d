"""The predicted speed is the assumed utilisation of the peak."""

import pytest
import torch

from model.estimates.flops import training_flops_per_token
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
