"""Predicted memory against autograd, a real step and recorded measurements."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from bench.bare_run import NETWORKS, bare_learner, bare_loader, uses_muon
from bench.memory import OUT
from model.config import GPTConfig
from model.estimates.largest_micro_batch import largest_micro_batch
from model.estimates.memory import (
    USABLE_SHARE,
    StepShape,
    block_activation_bytes,
    predict_memory,
)
from model.estimates.parameters import block_matrix_elements
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import autocast
from model.shapes import SHAPES
from storage.atomic import read_json
from tests.data_sets import tiny_data_set
from tests.live_bytes import LiveBytes
from tests.runs import alone, nano_config, tiny_config
from train.memory.forecast import step_shape
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig

GB = 10**9
CPU = torch.device("cpu")
SHAPE = GPTConfig(n_layer=1, n_head=4, n_embd=128, context_length=128, vocab_size=128)
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
_FIELDS = ("norm", "norm_weight", "embedding_norm", "qk_norm", "mlp", "position", "bias", "tied")
MODERN = {name: getattr(SHAPES["modern"], name) for name in (*_FIELDS, "logit_softcap")}
KINDS = [
    {},
    {"norm": "rmsnorm"},
    {"mlp": "swiglu"},
    {"position": "rope"},
    LLAMA,
    {"mlp": "relu2"},
    {"norm_weight": False},
    MODERN,
]
# So deep, with so few tokens, that the update is the largest moment.
DEEP = {"n_layer": 12, "n_embd": 128, "context_length": 8}
DTYPES = [torch.float32, torch.bfloat16]
WINDOWS = 8


def bytes_kept(config, dtype, compiled, separator=None):
    """Bytes of all tensors that the forward pass keeps for the backward pass, except weights."""
    model = GPT(config)
    model.initialise(0)
    step = NextTokenLoss(model, separator=separator)
    if compiled:  # the partition of forward and backward that Inductor compiles
        torch._dynamo.reset()
        step = torch.compile(step, dynamic=False, backend="aot_eager_decomp_partition")
    kept = []
    ids = torch.zeros(WINDOWS, config.context_length, dtype=torch.int64)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with nullcontext() if compiled else hooks, autocast(dtype, CPU):
        loss = step(ids, ids)
    kept = loss.grad_fn.saved_tensors if compiled else kept
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def bytes_a_block_keeps(config, dtype, compiled):
    """What one more block makes of it, by token, without the cast matrices."""
    deeper = replace(config, n_layer=config.n_layer + 1)
    more = bytes_kept(deeper, dtype, compiled) - bytes_kept(config, dtype, compiled)
    casts = 2 * block_matrix_elements(config) if dtype == torch.bfloat16 else 0
    return (more - casts) / (WINDOWS * config.context_length)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", KINDS)
def test_a_block_keeps_what_autograd_keeps(fields, dtype):
    config = replace(SHAPE, **fields)
    predicted = block_activation_bytes(config, StepShape(WINDOWS, dtype, False, device="cpu"))
    assert bytes_a_block_keeps(config, dtype, compiled=False) == predicted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [{}, LLAMA, MODERN])
def test_dropout_keeps_a_byte_for_each_number_and_the_weights_of_attention(fields, dtype):
    config = replace(SHAPE, dropout=0.1, **fields)
    step = StepShape(WINDOWS, dtype, False, device="cpu")
    predicted = block_activation_bytes(config, step)
    assert bytes_a_block_keeps(config, dtype, compiled=False) == pytest.approx(predicted, rel=0.07)
    on_cuda = [replace(config, dropout=share) for share in (0.1, 0.0)]
    kept = [block_activation_bytes(shape, replace(step, device="cuda")) for shape in on_cuda]
    assert kept[0] - kept[1] == 2 * SHAPE.n_embd


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [{}, MODERN])
def test_all_blocks_share_the_mask_and_the_rotations_within_documents(fields, dtype):
    config = replace(SHAPE, n_layer=3, **fields)
    masked, plain = (bytes_kept(config, dtype, False, separator) for separator in (3, None))
    step = StepShape(WINDOWS, dtype, False, device="cpu", mask_documents=True)
    predicted = predict_memory(config, step).documents
    # Without the option the rotations are of one window, and so are learned positions.
    own = 8 if config.position == "learned" else 2 * config.n_embd * step.element
    assert masked - plain == pytest.approx(predicted - own * config.context_length, rel=0.01)
    assert predict_memory(config, replace(step, mask_documents=False)).documents == 0
    on_cuda = replace(step, device="cuda", compiled=True)
    assert predict_memory(replace(config, n_head=1), on_cuda).documents < predicted


@pytest.mark.parametrize("dtype", DTYPES)
def test_shortcuts_keep_the_input_of_each_block_and_its_mixed_values(dtype):
    config = replace(SHAPE, n_layer=2, **MODERN)
    step = StepShape(WINDOWS, dtype, False, device="cpu")
    without, with_them = (
        bytes_kept(replace(config, n_layer=4, shortcuts=on), dtype, False) for on in (False, True)
    )
    predicted = [
        block_activation_bytes(replace(config, shortcuts=on), step) for on in (False, True)
    ]
    more = (with_them - without) / (WINDOWS * config.context_length)
    # The first block's input is kept anyway; the second half's first one is kept twice.
    assert more == pytest.approx(4 * (predicted[1] - predicted[0]), abs=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit._script")
@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, MODERN])
@pytest.mark.long
def test_a_compiled_block_keeps_what_the_partitioned_graph_keeps(fields):
    config, dtype = replace(SHAPE, n_layer=2, **fields), torch.bfloat16
    predicted = block_activation_bytes(config, StepShape(WINDOWS, dtype, True, device="cpu"))
    assert bytes_a_block_keeps(config, dtype, compiled=True) == predicted


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    tiny_data_set(folder)
    return folder


def predicted_and_live(config):
    """The predicted memory of a step without compiler, and the bytes at its peak."""
    learner = bare_learner(config, alone())
    loader = bare_loader(config, learner)
    learner.step(loader.next_step(), 1e-3)
    with LiveBytes() as live:
        for tensor in [*learner.model.parameters(), *tree_leaves(dict(learner.optimizer.state))]:
            if isinstance(tensor, torch.Tensor):
                live.see(tensor.detach())
        learner.step(loader.next_step(), 1e-3)
    loader.close()
    network, plan = learner.model.config, learner.plan
    step = step_shape(config, network, learner.ranks, plan.micro_batch, plan.windows)
    return predict_memory(network, step), live.peak


@pytest.mark.parametrize(
    ("fields", "dtype", "micro_steps", "fused", "optimizer"),
    [
        ({}, "float32", 1, "off", AdamWConfig()),
        ({}, "float32", 2, "off", AdamWConfig()),
        ({}, "bfloat16", 2, "off", AdamWConfig()),
        ({"tied": False, "n_layer": 12, "context_length": 8}, "bfloat16", 1, "off", AdamWConfig()),
        (LLAMA, "bfloat16", 2, "off", AdamWConfig()),
        (MODERN, "float32", 2, "off", AdamWConfig()),
        (MODERN, "bfloat16", 1, "off", MuonConfig()),
        (MODERN | {"shortcuts": True}, "float32", 2, "off", MuonConfig()),
        (MODERN | DEEP, "float32", 1, "on", MuonConfig()),
    ],
)
def test_the_peak_of_a_real_step_is_the_predicted_one(
    data, tmp_path, fields, dtype, micro_steps, fused, optimizer
):
    shape = GPTConfig(**({"n_layer": 2, "n_head": 4, "n_embd": 64, "context_length": 32} | fields))
    tokens = 2 * micro_steps * shape.context_length
    how = {"dtype": dtype, "batch_tokens": tokens, "fused_loss": fused, "optimizer": optimizer}
    config = tiny_config(data, tmp_path / "run", model=shape, **how)
    found, live = predicted_and_live(config)
    assert found.peak - found.runtime == pytest.approx(live, rel=0.02)
    assert (found.peak_moment == "update") == (fields == MODERN | DEEP)


@pytest.mark.parametrize(
    ("fields", "dtype", "within"),
    [({}, "float32", 0.1), ({}, "bfloat16", 0.1), (MODERN | {"shortcuts": True}, "float32", 0.03)],
)
def test_so_is_that_of_a_step_that_computes_its_blocks_again(tmp_path, fields, dtype, within):
    shape = GPTConfig(8, n_head=4, n_embd=64, context_length=64, vocab_size=300)
    how = {"model": replace(shape, **fields), "micro_batch": 8, "batch_tokens": 1024}
    config = nano_config(tmp_path, dtype=dtype, recompute="blocks", **how)
    found, live = predicted_and_live(config)
    assert found.peak - found.runtime == pytest.approx(live, rel=within)
    kept, _ = predicted_and_live(replace(config, recompute="off"))
    assert live < 0.7 * (kept.peak - kept.runtime)


@pytest.mark.parametrize(
    ("fields", "dtype"), [({}, "float32"), (MODERN, "float32"), (MODERN, "bfloat16")]
)
def test_so_is_that_of_a_step_within_documents(tmp_path, fields, dtype):
    shape = GPTConfig(2, n_head=4, n_embd=64, context_length=256, vocab_size=300)
    how = {"model": replace(shape, **fields), "micro_batch": 8, "batch_tokens": 2048}
    masked = {"dtype": dtype, "mask_documents": True, "fused_loss": "off"}
    config = nano_config(tmp_path, **masked, **how)
    found, live = predicted_and_live(config)
    assert found.documents > 0.05 * live
    assert found.peak - found.runtime == pytest.approx(live, rel=0.02)


@pytest.mark.parametrize(("micro_steps", "apart"), [(8, 2), (12, 2)])
def test_so_is_that_of_a_step_whose_gradients_are_summed_in_a_tree(tmp_path, micro_steps, apart):
    how = {"micro_batch": 1, "batch_tokens": 32 * micro_steps, "reduction": "tree"}
    shape = GPTConfig(n_layer=2, n_head=4, n_embd=64, context_length=32, vocab_size=300)
    found, live = predicted_and_live(nano_config(tmp_path, model=shape, **how))
    assert found.partial_sums == apart * found.weights
    assert found.peak - found.runtime == pytest.approx(live, rel=0.02)


@pytest.mark.parametrize(
    ("name", "within"),
    [
        ("memory", 0.15),
        ("memory_modern_demo", 0.1),
        ("memory_recomputed", 0.15),
        ("memory_tree", 0.15),
    ],
)
def test_recorded_measurements_on_the_cpu_are_near_the_prediction(name, within):
    rows = read_json(OUT.with_name(f"{name}.json"))["cases"]
    assert len(rows) >= 2
    for row in rows:
        network = NETWORKS[row["network"]]
        network = replace(network, vocab_size=row.get("vocab_size", network.vocab_size))
        optimizer = MuonConfig() if uses_muon(network) else AdamWConfig()
        step = StepShape(
            row["micro_batch"],
            getattr(torch, row["dtype"]),
            row["compiled"],
            micro_steps=row["micro_steps"],
            world_size=row.get("ranks", 1),
            reduction=row.get("reduction", "ddp"),
            device="cpu",
            fused_loss=row.get("fused_loss", False),
            recompute=row.get("recompute") == "blocks",
            update=optimizer.update_cost(network, "cpu"),
        )
        predicted = predict_memory(network, step).peak
        assert predicted == pytest.approx(row["measured"], rel=within), row


@given(
    share=st.integers(1, 600),
    memory=st.integers(6 * GB, 200 * GB),
    compiled=st.booleans(),
    world_size=st.sampled_from([1, 8]),
)
def test_the_largest_micro_batch_fits_divides_and_cannot_be_doubled(
    share, memory, compiled, world_size
):
    shape, like = SHAPES["gpt2"], StepShape(1, compiled=compiled, world_size=world_size)
    size = largest_micro_batch(shape, share, memory, like)

    def fits(windows):
        step = replace(like, micro_batch=windows, micro_steps=share // windows)
        return predict_memory(shape, step).peak <= USABLE_SHARE * memory

    assert size & (size - 1) == 0
    assert share % size == 0
    assert fits(size)
    assert share % (2 * size) or not fits(2 * size)


def test_a_model_too_large_for_one_window_is_refused_with_the_figures():
    with pytest.raises(ValueError, match=r"needs .* GiB, the device has 131.3 GiB"):
        largest_micro_batch(SHAPES["gpt3"], 64, 141 * GB)


def test_several_ranks_hold_gradients_in_buckets_and_once_more_while_they_accumulate():
    alone, once, often = (
        predict_memory(SHAPES["gpt2"], StepShape(64, micro_steps=steps, world_size=ranks))
        for ranks, steps in ((1, 2), (8, 1), (8, 2))
    )
    assert often.peak - alone.peak == often.buckets == alone.weights
    assert (once.gradients, once.peak) == (0, alone.peak)


def test_recomputed_blocks_keep_only_their_input():
    step = StepShape(64)
    all_of_it = predict_memory(SHAPES["gpt2"], step)
    again = predict_memory(SHAPES["gpt2"], replace(step, recompute=True))
    assert again.layers == again.layer + 12 * 64 * 1024 * 4 * 768
    assert again.peak < all_of_it.peak


@pytest.mark.parametrize(
    ("layers", "width", "micro_batch", "measured"),
    [(1, 16, 4, 26.4e6), (4, 128, 4, 58.9e6), (4, 256, 4, 114.9e6), (6, 384, 4, 276.3e6)],
)
def test_the_runtime_of_a_tiny_network_on_the_cpu_is_not_that_of_a_large_one(
    layers, width, micro_batch, measured
):
    shape = GPTConfig(layers, max(1, width // 64), width, context_length=64, vocab_size=300)
    step = StepShape(micro_batch, torch.float32, False, device="cpu", fused_loss=True)
    assert predict_memory(shape, step).peak == pytest.approx(measured, rel=0.15)


def test_a_tree_keeps_sums_apart_and_all_gradients_in_one_piece_for_the_exchange():
    like = StepShape(64, reduction="tree")
    few, many, odd = (
        predict_memory(SHAPES["gpt2"], replace(like, micro_steps=steps)) for steps in (2, 16, 12)
    )
    assert [found.partial_sums for found in (few, many, odd)] == [
        0,
        3 * few.weights,
        2 * few.weights,
    ]
    assert many.peak - few.peak == many.partial_sums
    ranks = predict_memory(SHAPES["gpt2"], replace(like, world_size=8))
    assert ranks.peak - few.peak == ranks.buckets == few.weights * 3 // 2
