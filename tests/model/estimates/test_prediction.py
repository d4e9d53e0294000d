"""The predicted speed is the assumed utilisation of the peak."""

import pytest
import torch

from model.estimates.flops import training_flops_per_token
from model.estimates.memory import StepShape
from model.estimates.prediction import predict
from model.shapes import SHAPES


def test_predicted_speed_is_the_assumed_utilisation_by_our_own_formula():
    step = StepShape(micro_batch=8, world_size=8)
    found = predict(SHAPES["gpt2"], step, "NVIDIA H200", mfu=0.5)
    spent = found.tokens_per_second * training_flops_per_token(SHAPES["gpt2"])
    assert spent == pytest.approx(0.5 * 8 * 989e12)


def test_no_speed_is_predicted_for_a_device_without_a_peak():
    found = predict(SHAPES["demo"], StepShape(4, torch.float32, False, device="cpu"))
    assert found.tokens_per_second is None
