"""One block, shares and context lengths, each against a formula of its own."""

from dataclasses import replace

import pytest

from model.estimates.breakdown import block_parts, context_comparison, shares
from model.estimates.budget import disk_budget
from model.estimates.flops import forward_flops
from model.estimates.parameters import count_parameters
from model.estimates.updates import adamw_update
from model.shapes import SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_the_parts_of_a_block_are_its_parameters_and_its_flops(name):
    shape = SHAPES[name]
    parts = block_parts(shape).values()
    whole = sum(part.weights + part.biases for part in parts)
    assert whole * shape.n_layer == count_parameters(shape).blocks
    flops = forward_flops(shape)
    of_blocks = sum(flops.values()) - flops["head"]
    assert sum(part.forward_flops for part in parts) * shape.n_layer == of_blocks


def test_a_block_of_gpt2_by_hand():
    parts = block_parts(SHAPES["gpt2"])
    attention, feed_forward = parts["query, key, value"], parts["feed-forward"]
    assert (attention.weights, attention.biases) == (3 * 768**2, 3 * 768)
    assert (parts["attention output"].weights, parts["attention output"].biases) == (768**2, 768)
    assert (feed_forward.weights, feed_forward.biases) == (2 * 4 * 768**2, 4 * 768 + 768)
    assert (parts["two norms"].weights, parts["two norms"].biases) == (2 * 768, 2 * 768)
    assert attention.forward_flops == 2 * 1024 * 768 * (3 * 768)
    assert parts["attention scores"].forward_flops == 12 * (2 * 1024 * 64 * 1024)  # by head


def test_sixteen_times_the_context_by_hand():
    xl = replace(
        SHAPES["gpt2-xl"], norm="rmsnorm", mlp="swiglu", position="rope", bias=False, tied=False
    )
    found = context_comparison(replace(xl, context_length=16_384), 1024)
    projections = 48 * (4 * 1600**2 + 3 * 1600 * 6400) + 1600 * 50_257
    attention = [48 * 4 * T * T * 1600 for T in (1024, 16_384)]
    short, long = (
        2 * T * projections + quadratic
        for T, quadratic in zip((1024, 16_384), attention, strict=True)
    )
    assert (short, long) == (4_513_336_524_800, 149_522_795_724_800)
    assert [sum(flops.values()) for flops in found["forward_flops"]] == [short, long]
    assert found["ratio"] == pytest.approx(long / short)
    assert found["ratio_per_token"] == pytest.approx(long / short / 16)
    parts = ("attention scores", "attention values")
    for share, quadratic, total in zip(found["shares"], attention, (short, long), strict=True):
        assert sum(share[part] for part in parts) == pytest.approx(quadratic / total)


def test_shares_add_up_to_one():
    assert sum(shares(forward_flops(SHAPES["modern"])).values()) == pytest.approx(1)


def test_the_disk_holds_shards_beside_checkpoints_or_source():
    gpt2 = SHAPES["gpt2"]
    update, each = adamw_update(gpt2), 12 * 124_475_904
    run = disk_budget(gpt2, update, kept_checkpoints=3, tokens=10**9)
    assert (run.checkpoint, run.checkpoints, run.data) == (each, 4 * each, 2 * 10**9)
    assert run.total == run.data + run.checkpoints  # 6.0 GB of them, 3 GB of source
    large = disk_budget(gpt2, update, kept_checkpoints=3, tokens=10**10)
    assert large.total == large.data + large.source
    wide = disk_budget(replace(gpt2, vocab_size=128_256), update, kept_checkpoints=3, tokens=10**9)
    assert wide.data == 4 * 10**9
