"""What an optimizer's configuration says of its memory and FLOPs, against real updates."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import GPTConfig
from model.estimates.updates import MUON_ITERATIONS, UPDATES, muon_update, orthogonal_flops
from model.gpt import GPT
from model.shapes import SHAPES
from tests.live_bytes import LiveBytes
from train.optimizers.muon import POLAR_EXPRESS, MuonConfig, orthogonal
from train.optimizers.registry import OPTIMIZERS, build_optimizer, update
from train.presets import PRESETS

SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 32, "context_length": 16, "vocab_size": 300}
MODERN = replace(SHAPES["modern"], **SIZES)
NETWORKS = [
    MODERN,
    replace(MODERN, shortcuts=True, mlp="swiglu", mlp_width=32),  # all matrices of one shape
    GPTConfig(**SIZES),
]
GO = torch.zeros(())


def updated(network, config):
    """A network and its optimizer after an update, with gradients for the next one."""
    model = GPT(network)
    model.initialise(0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(model, config)
    update(optimizer, 0, config.lr, GO)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_optimizer_keeps_the_bytes_that_its_configuration_says(name, network):
    config = OPTIMIZERS[name].config()
    _, optimizer = updated(network, config)
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    kept = sum(t.nbytes for t in tensors if t.dim())  # scalars, such as AdamW's steps, are nothing
    assert kept == config.update_cost(network, "cpu").state_bytes


@pytest.mark.parametrize("network", NETWORKS)
def test_the_update_of_muon_takes_the_memory_that_is_predicted(network):
    network = replace(network, n_embd=128)
    model, optimizer = updated(replace(network, mlp_width=network.mlp_width and 128), MuonConfig())
    with LiveBytes() as live:
        for parameter in model.parameters():
            for tensor in (parameter.data, parameter.grad, *optimizer.state[parameter].values()):
                live.see(tensor)
        before = live.now
        update(optimizer, 1, 0.02, GO)
    predicted = MuonConfig().update_cost(model.config, "cpu").scratch_bytes
    assert live.peak - before == pytest.approx(predicted, rel=0.02)


@pytest.mark.parametrize("shape", [(5, 16, 16), (2, 64, 16), (3, 16, 48)])
def test_the_flops_of_muon_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonal(torch.ones(shape))
    assert counter.get_total_flops() == shape[0] * orthogonal_flops(*shape[1:])
    assert len(POLAR_EXPRESS) == MUON_ITERATIONS


@pytest.mark.parametrize("network", NETWORKS)
def test_the_flops_of_an_update_are_those_that_torch_counts(network):
    _, optimizer = updated(network, MuonConfig())
    with FlopCounterMode(display=False) as counter:
        update(optimizer, 1, 0.02, GO)
    assert counter.get_total_flops() == muon_update(network).flops


@pytest.mark.parametrize(
    ("name", "teraflops"), [("modern", 1.63), ("modern-medium", 7.7), ("modern-large", 22.7)]
)
def test_the_update_of_large_networks_has_the_published_flops(name, teraflops):
    assert muon_update(SHAPES[name]).flops / 1e12 == pytest.approx(teraflops, rel=0.005)


def test_the_cost_model_knows_every_optimizer_of_a_preset_by_its_name():
    for preset in PRESETS.values():
        [name] = [n for n, kind in OPTIMIZERS.items() if type(preset.optimizer) is kind.config]
        cost = UPDATES[name](preset.model)
        assert cost == preset.optimizer.update_cost(preset.model, "cuda")
