"""AdamW: which parameters decay, and what a skipped update leaves unchanged."""

import copy

import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT
from train.optimizers.adamw import AdamWConfig, parameter_groups
from train.optimizers.registry import build_optimizer, update

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=8, vocab_size=100)


def model_with_gradients(seed=0):
    model = GPT(CONFIG)
    model.initialise(seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def test_the_groups_partition_the_parameters_and_only_matrices_decay():
    model = GPT(CONFIG)
    decayed, plain = parameter_groups(model, 0.1)
    grouped = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    assert "wte.weight" in [names[id(p)] for p in decayed["params"]]
    assert all(names[id(p)].endswith("bias") or "ln" in names[id(p)] for p in plain["params"])
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_an_update_equals_plain_adamw_in_float64():
    model = model_with_gradients()
    reference = copy.deepcopy(model).double()
    groups = parameter_groups(reference, 0.1)
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=False)
    fused = build_optimizer(model, AdamWConfig(lr=1e-2))
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        other.grad = own.grad.double()
    for _ in range(3):
        update(fused, 0, 1e-2, skip=torch.zeros(()))
        plain.step()
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.double(), other, atol=1e-6, rtol=1e-5)


def test_a_skipped_update_changes_nothing_and_the_next_one_works():
    model, twin = model_with_gradients(), model_with_gradients()
    skipping, straight = (build_optimizer(m, AdamWConfig()) for m in (model, twin))
    update(skipping, 0, 1e-3, torch.zeros(()))
    good = [p.grad.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad.fill_(float("nan"))
    update(skipping, 0, 1e-3, torch.ones(()))
    for parameter, gradient in zip(model.parameters(), good, strict=True):
        parameter.grad.copy_(gradient)
    update(skipping, 0, 1e-3, torch.zeros(()))
    for _ in range(2):
        update(straight, 0, 1e-3, torch.zeros(()))
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", float("nan")),
        ("beta2", 1.0),
        ("weight_decay", -1.0),
        ("weight_decay", 1000.0),
        ("clip", 0.0),
    ],
)
def test_impossible_settings_are_refused_with_their_value(field, value):
    with pytest.raises(ValueError, match=f"optimizer.{field}={value}"):
        AdamWConfig(**{field: value})
