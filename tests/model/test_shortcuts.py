"""Shortcuts: any number of layers, their scales' first values and gradients, compilation."""

from dataclasses import replace

import pytest
import torch

from model.gpt import GPT
from model.loss import NextTokenLoss
from model.shapes import SHAPES
from tests.model.plain_forward import plain_logits
from train.optimizers.muon import MuonConfig, build_muon
from train.optimizers.registry import update

SIZES = {"n_layer": 4, "n_head": 2, "n_embd": 16, "context_length": 8, "vocab_size": 60}
SHAPE = replace(SHAPES["modern"], **SIZES, shortcuts=True)
IDS = torch.randint(60, (2, 8), generator=torch.Generator().manual_seed(5))


def started(**fields):
    model = GPT(replace(SHAPE, **fields))
    model.initialise(1)
    return model


@pytest.mark.parametrize("n_layer", [1, 2, 3, 4, 5])
def test_any_number_of_layers_equals_the_plain_formulas_and_uses_every_scale(n_layer):
    model = GPT(replace(SHAPE, n_layer=n_layer))
    torch.manual_seed(n_layer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.4)
    logits = model(IDS)
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    expected = plain_logits(model.config, weights, IDS)
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=1e-4)
    logits.square().mean().backward()
    # A parameter without a gradient would stop DDP. The first layer's values are its own.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        unused = name == "shortcuts.first_values" and parameter.grad.count_nonzero() == n_layer - 1
        assert unused or parameter.grad.all() or parameter.dim() > 1, name


def test_the_scales_start_where_the_stream_passes_and_half_the_values_are_the_first_ones():
    scales = {name: p.tolist() for name, p in started().shortcuts.named_parameters()}
    assert scales == {
        "stream": [1.0] * 4,
        "embedding": [0.0] * 4,
        "first_values": [0.5] * 4,
        "earlier": [1.0] * 2,
    }


def test_training_moves_every_scale_but_the_first_layers_values():
    model = started()
    before = {name: p.clone() for name, p in model.shortcuts.named_parameters()}
    optimizer = build_muon(model, MuonConfig())
    for step in range(4):
        model.zero_grad()
        NextTokenLoss(model, fused=True)(IDS, IDS.roll(-1, 1)).backward()
        update(optimizer, step, 0.025, torch.zeros(()))
    for name, scale in model.shortcuts.named_parameters():
        moved = scale != before[name]
        assert moved.tolist() == [name != "first_values", *[True] * (len(scale) - 1)], name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, by its own compiler
@pytest.mark.parametrize(("shortcuts", "fused"), [(False, True), (True, False)])
def test_a_modern_network_compiles_in_one_graph_and_has_the_same_gradients(shortcuts, fused):
    model = started(shortcuts=shortcuts, initial_weights="gpt2", n_layer=2)
    step = NextTokenLoss(model, fused)
    compiled = torch.compile(step, backend="aot_eager", dynamic=False, fullgraph=True)
    found = []
    for own in (step, compiled):
        model.zero_grad()
        own(IDS, IDS.roll(-1, 1)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager, atol=1e-6, rtol=1e-4)
