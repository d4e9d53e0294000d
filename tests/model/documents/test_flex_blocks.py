"""Attention within documents by flex attention: the blocks, and the math of the mask."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.backends.distributed import DDPOptimizer
from torch.nn.attention import flex_attention

import model.documents.flex_blocks as blocks_module
from model.documents.flex_blocks import attend_in_blocks, document_blocks, uses_flex
from model.documents.mask import document_positions
from model.gpt import GPT
from model.loss import NextTokenLoss
from tests.model.documents.test_mask import (
    END,
    SHAPES_OF,
    losses_and_gradients,
    started,
    windows,
)
from tests.model.test_graphs import graphs_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """Have flex attention run on the CPU, by formulas instead of kernels, backward too."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_attention, "_WARNINGS_SHOWN", set(), raising=False)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # of torch, by its own compiler
def test_flex_attention_gives_the_losses_and_gradients_of_the_mask(flex_on_cpu):
    model = started(replace(SHAPES_OF["modern-shortcuts"], n_layer=2))
    ids, targets = windows()
    both = (model.hidden(ids, separator=END, flex=flex) for flex in (True, False))
    found, wanted = (losses_and_gradients(model, states, targets) for states in both)
    for ours, theirs in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def listed(counts, numbers):
    """The blocks that a BlockMask names, as (window, row, block)."""
    if counts is None:
        return set()
    return {
        (b, row, int(block))
        for b, rows in enumerate(counts[:, 0])
        for row, count in enumerate(rows.tolist())
        for block in numbers[b, 0, row, :count]
    }


@pytest.mark.parametrize("length", [512, 300, 128, 40])
def test_blocks_are_those_that_torch_finds_by_looking_at_every_pair(length):
    random = torch.Generator().manual_seed(length)
    ids = (torch.rand(5, length, generator=random) > 4 / length).long()  # 0 opens a document
    positions = document_positions(ids, 0)
    starts = torch.arange(length) - positions

    def attended(b, h, q, k):
        return (k <= q) & (k >= starts[b, q])

    torchs = flex_attention.create_block_mask(attended, 5, None, length, length, device="cpu")
    ours = document_blocks(positions)
    for part in ("kv", "full_kv", "q", "full_q"):
        names = f"{part}_num_blocks", f"{part}_indices"
        found, wanted = (listed(*(getattr(mask, n) for n in names)) for mask in (ours, torchs))
        assert found == wanted, part
    assert ours.seq_lengths == torchs.seq_lengths == (length, length)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its own compiler
@pytest.mark.parametrize("flex", [False, True])
def test_network_and_loss_with_documents_are_one_graph(flex_on_cpu, flex):
    model = GPT(replace(SHAPES_OF["modern-shortcuts"], context_length=8, n_layer=2))
    model.initialise(0)
    step = NextTokenLoss(model, recompute=flex, separator=END, flex=flex)
    assert len(graphs_of(step)) == 1


def test_flex_attention_is_for_compiled_steps_on_cuda_without_dropout(monkeypatch):
    monkeypatch.setattr(blocks_module, "HAS_TRITON", True)
    good: dict[str, Any] = {
        "device": CUDA,
        "head_width": 64,
        "dropout": 0.0,
        "compiled": True,
        "world_size": 2,
    }
    assert uses_flex(**good)
    for changed in ({"device": CPU}, {"compiled": False}, {"dropout": 0.1}, {"head_width": 8}):
        other: dict[str, Any] = good | changed
        assert not uses_flex(**other)
    monkeypatch.setattr(blocks_module, "HAS_TRITON", False)
    assert not uses_flex(**good)


def test_where_ddp_cannot_cut_its_graph_several_ranks_have_the_mask(monkeypatch):
    monkeypatch.setattr(blocks_module, "HAS_TRITON", True)
    monkeypatch.setattr(DDPOptimizer, "compile_fn", lambda cut: cut.has_higher_order_op)
    assert not uses_flex(CUDA, 64, 0.0, True, 2)
    assert uses_flex(CUDA, 64, 0.0, True, 1)


def test_queries_of_another_type_than_the_values_are_cast(flex_on_cpu):
    q = torch.randn(1, 1, 24, 16)
    mask = document_blocks(document_positions(windows()[0][:1], END))
    with pytest.warns(UserWarning, match="without torch.compile"):
        assert attend_in_blocks(q, q, q.bfloat16(), mask).dtype == torch.bfloat16
