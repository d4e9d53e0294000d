"""What the two runs of a pair share."""

from dataclasses import replace

import torch

from model.gpt import GPT
from model.shapes import SHAPES
from storage.terminal.quantities import short
from tests.runs import MODERN as MODERN_SHAPE
from tests.runs import SHAPE as GPT2_SHAPE
from train.experiments.live_pairs import shared_weights

SHAPE, MODERN = (replace(shape, vocab_size=300) for shape in (GPT2_SHAPE, MODERN_SHAPE))


def drawn(config, seed=1):
    """The matrices of a new network, by name."""
    model = GPT(config)
    model.initialise(seed)
    return {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}


def test_equal_networks_of_one_seed_begin_equal():
    assert "same initial weights" in shared_weights(SHAPE, SHAPE)
    one, other = drawn(SHAPE), drawn(SHAPE)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_deeper_network_begins_with_the_weights_of_the_common_blocks():
    """But for the last matrix of each part, whose deviation follows from the depth in GPT-2."""
    deeper = replace(SHAPE, n_layer=3)
    one, other = drawn(SHAPE), drawn(deeper)
    names = [name for name in one if not name.endswith("c_proj.weight")]
    assert len(names) > 4
    assert all(torch.equal(one[name], other[name]) for name in names)
    whole = short(sum(p.numel() for p in one.values()))
    assert f"first {whole} of A's {whole}" in shared_weights(SHAPE, deeper)


def test_a_head_after_more_blocks_begins_otherwise():
    modern = replace(MODERN, initial_weights="gpt2")
    one, other = drawn(modern), drawn(replace(modern, n_layer=3))
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(one["h.1.mlp.c_fc.weight"], other["h.1.mlp.c_fc.weight"])


def test_a_wider_network_shares_nothing():
    assert "first 0 of" in shared_weights(SHAPE, replace(SHAPE, n_embd=32))


def test_large_networks_are_not_built_for_that():
    assert "of A's 1.56B" in shared_weights(
        SHAPES["gpt2-xl"], replace(SHAPES["gpt2-xl"], n_layer=2)
    )
