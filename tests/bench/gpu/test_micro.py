"""Tests of bench/gpu/micro.py: each measurement at a toy size, and one that fails."""

import inspect

import torch

from bench.gpu import micro
from model.fused_loss.loss_kernel import softmax_minus_one_hot_on_cuda_

CPU = torch.device("cpu")


def test_every_measurement_gives_its_numbers_at_a_toy_size():
    facts = {fact.pop("what"): fact for fact in micro.measured(CPU)}
    # cuDNN has no kernel for the CPU; its line says so.
    assert "error" in facts.pop("attention cudnn")
    facts = {what: fact for what, fact in facts.items() if not what.startswith("attention")}
    assert not [fact for fact in facts.values() if "error" in fact]
    assert facts["machine"]["torch"] == torch.__version__
    products = [fact for what, fact in facts.items() if what.startswith("product")]
    assert len(products) == 5
    assert all(number > 0 for fact in products for number in fact.values())
    assert facts["decoding others"]["ms_of_a_new_length"] > 0


def test_the_kernel_of_the_loss_takes_the_shapes_that_are_timed():
    for block, warps in micro._LOSS_SHAPES:
        inspect.signature(softmax_minus_one_hot_on_cuda_).bind(0, 0, block=block, warps=warps)
