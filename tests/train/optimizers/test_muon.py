"""Muon: the update of a step, its groups, its skip flag and its momentum."""

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from model.config import GPTConfig
from model.gpt import GPT
from model.shapes import SHAPES
from train.optimizers.muon import POLAR_EXPRESS, Muon, MuonConfig, build_muon, orthogonal
from train.optimizers.registry import build_optimizer, update

SHAPE = replace(
    SHAPES["modern"],
    n_layer=2,
    n_head=2,
    n_embd=16,
    context_length=8,
    vocab_size=50,
    shortcuts=True,
)
GO, SKIP = torch.zeros(()), torch.ones(())


def model_with_gradients(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = GPT(shape)
    model.initialise(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_the_coefficients_bring_singular_values_near_one():
    s = torch.linspace(0.001, 1 / 1.01, 10_000, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS:
        s = a * s + b * s**3 + c * s**5
    assert (s.min() > 0.8585, s.max() < 1.1415) == (True, True)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 64, 16), (2, 16, 64)])
def test_the_orthogonal_matrices_have_the_singular_vectors_of_the_given_ones(shape):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    u = left @ torch.diag_embed(values.clamp(min=0.1)) @ right
    found = orthogonal(u)
    inside = left.mT @ found @ right.mT  # diagonal, if the singular vectors are the same
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-6
    assert (values.min() > 0.8, values.max() < 1.2) == (True, True)


def test_momentum_of_zeros_gives_no_update_and_no_nan():
    assert torch.equal(orthogonal(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


def test_the_applied_update_has_singular_values_near_one_for_q_k_and_v_apart():
    model = model_with_gradients()
    before = deepcopy(model)
    config = MuonConfig(weight_decay=0.0)
    update(build_muon(model, config), 0, 0.5, GO)
    for block, old in zip(model.h, before.h, strict=True):
        changes = [(old.attn.c_attn.weight - block.attn.c_attn.weight).chunk(3)]
        pairs = [(block.attn.c_proj, old.attn.c_proj), (block.mlp.c_fc, old.mlp.c_fc)]
        pairs.append((block.mlp.c_proj, old.mlp.c_proj))
        changes.append([o.weight - n.weight for n, o in pairs])
        for change in (one for group in changes for one in group):
            rows, columns = change.shape
            values = torch.linalg.svdvals(change.double()) / 0.5 / max(1, rows / columns) ** 0.5
            assert (values.min() > 0.7, values.max() < 1.3) == (True, True), change.shape


def test_the_update_equals_the_formula_written_for_one_matrix():
    model = model_with_gradients()
    weight = model.h[1].mlp.c_fc.weight
    g, w = weight.grad.double(), weight.detach().double()
    optimizer = build_muon(model, MuonConfig())
    m = torch.zeros_like(g)
    for step in range(3):
        mu = 0.85 + 0.1 * step / 300
        m = m + (1 - mu) * (g - m)
        u = g + mu * (m - g)
        w = w * (1 - 0.025 * 0.05) - 0.025 * 2 * orthogonal(u[None])[0]  # 64 x 16: sqrt(4)
        update(optimizer, step, 0.025, GO)
    assert torch.allclose(weight.detach().double(), w, atol=1e-5)
    assert torch.allclose(optimizer.state[weight]["momentum"].double(), m, atol=1e-6)
    assert optimizer.state[weight]["momentum"].dtype == torch.float32


def test_a_skipped_update_changes_no_bit_and_the_next_one_is_as_without_it():
    model = model_with_gradients()
    twin = deepcopy(model)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        other.grad = parameter.grad.clone()
    skipping, straight = (build_muon(m, MuonConfig()) for m in (model, twin))
    for optimizer in (skipping, straight):
        update(optimizer, 0, 0.02, GO)
    good = model.h[0].attn.c_attn.weight.grad.clone()
    model.h[0].attn.c_attn.weight.grad[0, 0] = torch.nan
    model.wte.weight.grad[0, 0] = torch.inf
    before = deepcopy(model.state_dict())
    update(skipping, 1, 0.02, SKIP)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.h[0].attn.c_attn.weight.grad = good
    model.wte.weight.grad = twin.wte.weight.grad.clone()
    for optimizer in (skipping, straight):
        update(optimizer, 2, 0.02, GO)
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)
        states = skipping.state[own], straight.state[other]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_no_update_waits_for_a_number_on_the_host():
    """Tensors without content: reading one on the host is an error, as float() here."""
    with FakeTensorMode():
        model, skip = GPT(SHAPE), torch.ones(())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer = build_muon(model, MuonConfig())
        for step in range(2):
            update(optimizer, step, 0.02, skip)
        with pytest.raises(DataDependentOutputException):
            float(skip)


def test_each_group_has_its_own_rate_and_every_parameter_is_in_one_group():
    model = model_with_gradients()
    optimizer = build_optimizer(model, MuonConfig())
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    assert all(name.startswith("h.") and name.endswith("weight") for name in groups[0])
    assert groups[1:] == [
        {"wte.weight"},
        {"lm_head.weight"},
        {f"shortcuts.{name}" for name in ("embedding", "first_values", "earlier")},
        {"shortcuts.stream"},
    ]
    for share in (1.0, 0.5, 1 / 2275):
        update(optimizer, 7, 0.025 * share, GO)
        rates = [group["lr"] / share for group in optimizer.param_groups]
        assert rates == pytest.approx([0.025, 0.7, 0.004, 0.04, 0.005])


def test_the_momentum_grows_over_its_first_steps_and_then_stays():
    rates = [MuonConfig().momentum_at(step) for step in range(400)]
    assert (rates[0], rates[300], rates[399]) == pytest.approx((0.85, 0.95, 0.95))
    assert all(late >= early for early, late in pairwise(rates))
    assert MuonConfig(momentum_steps=0).momentum_at(0) == 0.95


def test_a_network_with_biases_norms_and_positions_has_them_in_groups_too():
    model = model_with_gradients(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=50))
    update(build_muon(model, MuonConfig()), 0, 0.01, GO)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr": 0.0}, "optimizer.lr=0.0 is not a learning rate; use a positive number like 0.025"),
        ({"embedding_lr": -1.0}, "optimizer.embedding_lr=-1.0 is not a learning rate"),
        ({"momentum": 1.0}, "optimizer.momentum=1.0 is out of range; use 0 <= momentum < 1"),
        ({"momentum_steps": -1}, "optimizer.momentum_steps=-1 is out of range; use 0 or more"),
        (
            {"epsilon": 0.0},
            "optimizer.epsilon=0.0 is not positive; use a positive number like 1e-10",
        ),
        ({"clip": 0.0}, "optimizer.clip=0.0 is not positive; use None to disable clipping"),
    ],
)
def test_settings_that_train_nothing_are_refused(fields, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        MuonConfig(**fields)


def test_a_network_without_matrices_in_blocks_is_refused():
    model = GPT(SHAPE)
    model.h = torch.nn.ModuleList()
    with pytest.raises(ValueError, match=r"optimizer.lr=0.025 is for .* --optimizer adamw"):
        build_muon(model, MuonConfig())


def test_muon_is_what_its_name_builds():
    assert isinstance(build_optimizer(GPT(SHAPE), MuonConfig()), Muon)
