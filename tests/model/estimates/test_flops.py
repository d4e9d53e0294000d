"""FLOPs against what torch counts and what others publish; GPUs by their names."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import GPTConfig
from model.estimates.flops import (
    GPUS,
    causal_flops_per_token,
    forward_flops,
    matmul_flops_per_token,
    peak_flops,
    training_flops_per_token,
)
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.shapes import SHAPES

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
XL_LLAMA = GPTConfig(48, 25, 1600, **LLAMA)


def on_meta(config):
    with torch.device("meta"):
        return GPT(config)


SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context_length": 16, "vocab_size": 300}
SMALL_NETWORKS = [
    GPTConfig(**SMALL),
    GPTConfig(**SMALL, mlp="swiglu", mlp_width=40),
    GPTConfig(**SMALL, **LLAMA),
    replace(SHAPES["modern"], **SMALL),
    replace(SHAPES["modern"], **SMALL, shortcuts=True),
]


@pytest.mark.parametrize("config", SMALL_NETWORKS)
def test_forward_flops_are_those_that_torch_counts(config):
    ids = torch.zeros(1, 16, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(config)(ids)
    assert sum(forward_flops(config).values()) == counter.get_total_flops()


@pytest.mark.parametrize("config", SMALL_NETWORKS)
def test_the_flops_of_forward_and_backward_are_those_that_torch_counts(config):
    step, ids = NextTokenLoss(on_meta(config)), torch.zeros(1, 16, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        step(ids, ids).backward()
    assert counter.get_total_flops() == 16 * matmul_flops_per_token(config)


def test_the_convention_of_mfu_leaves_out_an_embedding_that_is_only_looked_up():
    modern = SHAPES["modern"]
    assert training_flops_per_token(modern) == 6 * (162_201_600 - 38_633_472) + 12**2 * 768 * 1024
    assert training_flops_per_token(modern) == matmul_flops_per_token(modern)  # no vectors


def test_forward_flops_of_the_large_llama_shape_are_the_published_ones():
    assert sum(forward_flops(XL_LLAMA, padded=False).values()) == 4_513_336_524_800


def test_the_three_conventions_of_gpt2_are_those_of_their_authors():
    shape = SHAPES["gpt2"]
    assert training_flops_per_token(shape) == 6 * 123_689_472 + 12 * 12 * 768 * 1024
    products = 6 * (84_934_656 + 38_633_472)
    assert matmul_flops_per_token(shape) == products + 12 * 12 * 768 * 1024
    assert causal_flops_per_token(shape) == products + 6 * 12 * 768 * 1024


def test_matmul_only_is_three_forward_passes():
    per_window = matmul_flops_per_token(XL_LLAMA) * XL_LLAMA.context_length
    assert per_window == 3 * sum(forward_flops(XL_LLAMA).values())


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(device, peak):
    assert peak_flops(device, torch.bfloat16) == peak_flops(device, torch.float16) == peak


def test_float32_products_have_the_peak_of_tf32():
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.float32) == 156e12
    assert all(1.9 < gpu.bfloat16 / gpu.tf32 < 2.1 for gpu in GPUS.values())


def test_no_gpu_of_the_table_hides_a_later_one():
    for name, gpu in GPUS.items():
        found = next(n for n, other in GPUS.items() if other.part_of_name in gpu.part_of_name)
        assert found == name
