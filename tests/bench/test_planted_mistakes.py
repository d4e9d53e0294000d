"""A planted mistake changes what it says, while it is planted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench import planted_mistakes
from bench.planted_mistakes import MISTAKES
from data_prep.order import epoch_index
from data_prep.order.windows import OneSource
from model import blocks
from model.gpt import GPT
from tests.runs import MODERN
from train import build, loader, step
from train.optimizers.muon import MuonConfig
from train.step import StepBatch

WINDOWS = torch.arange(12, dtype=torch.int16).view(4, 3)


def made_optimizer():
    return SimpleNamespace(
        param_groups=[{"lr": 0.0}],
        state={0: {"momentum": torch.tensor([1.001, 2.0])}},
        step=lambda: None,
    )


def rate():
    """The rate of an update, and the momentum after it."""
    optimizer = made_optimizer()
    step.update(optimizer, 0, 0.5, torch.tensor(0.0))  # type: ignore[arg-type]
    return optimizer.param_groups[0]["lr"], optimizer.state[0]["momentum"].tolist()


def initial():
    model = GPT(MODERN)
    model.initialise(1)
    return model.wte.weight.detach().std().item(), model.lm_head.weight is model.wte.weight


def attention():
    q, v = torch.ones(1, 1, 3, 2), torch.arange(6.0).view(1, 1, 3, 2)
    found = blocks.F.scaled_dot_product_attention(q, q, v, None, 0.0, is_causal=True)
    return found[0, 0, :, 0].tolist()


def windows():
    read = SimpleNamespace(
        read=lambda first, count: np.arange(first, first + count), token_dtype=np.dtype("<u2")
    )
    found = np.empty((1, 3), np.uint16)
    loader.read_into(found, OneSource(read), 1030)  # type: ignore[arg-type]
    return found.tolist()


# What is looked at, what is found there, and what a mistake makes of it.
SEEN = {
    "rate_doubled": (rate, (1.0, [pytest.approx(1.001, abs=1e-6), 2.0])),
    "rate_halved": (rate, (0.25, [pytest.approx(1.001, abs=1e-6), 2.0])),
    "bfloat16_moments": (rate, (0.5, [1.0, 2.0])),
    "no_shuffling": (
        lambda: epoch_index.FeistelPermutation(9, 1, 0)(np.arange(3, 9)).tolist(),
        [3, 4, 5, 6, 7, 8],
    ),
    "targets_off_by_one": (
        lambda: step.ids_and_targets(WINDOWS)[1].tolist(),
        [[2, 1], [5, 4], [8, 7], [11, 10]],
    ),
    "tied_by_accident": (initial, (pytest.approx(1.0, abs=0.1), True)),
    "wrong_initial_deviation": (initial, (pytest.approx(2.0, abs=0.2), False)),
    "half_the_batch": (
        lambda: StepBatch(0, 0, WINDOWS).micro_batches(1).tolist(),
        [[[0, 1, 2]], [[3, 4, 5]]],
    ),
    "repeated_epoch": (windows, [[12, 13, 14]]),
    "mask_leak": (attention, [2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_mistake_changes_what_it_says_and_is_gone_afterwards(name):
    look, wrong = SEEN[name]
    sound = look()
    with MISTAKES[name][1]():
        assert look() == wrong != sound
    assert look() == sound


def test_every_other_mistake_has_a_test_below():
    others = {"accumulation_not_scaled", "wrong_beta", "wrong_momentum"}
    assert MISTAKES.keys() - SEEN.keys() == others


@pytest.mark.parametrize(
    ("name", "wrong"), [("wrong_beta", (0.999, 0.95)), ("wrong_momentum", (0.95, 0.8))]
)
def test_the_optimizer_is_built_with_another_constant(name, wrong, monkeypatch):
    monkeypatch.setattr(planted_mistakes, "build_optimizer", lambda model, config: config)
    with MISTAKES[name][1]():
        found: Any = build.build_optimizer(GPT(MODERN), MuonConfig())
    assert (found.beta2, found.momentum) == wrong


def test_gradients_of_two_micro_batches_are_doubled():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([3.0])
    learner = SimpleNamespace(
        model=SimpleNamespace(parameters=lambda: [weight]),
        plan=SimpleNamespace(grad_accum_steps=2),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.Learner, "_forward_and_backward", lambda learner, batch: True)
        with MISTAKES["accumulation_not_scaled"][1]():
            assert step.Learner._forward_and_backward(learner, None)  # type: ignore[arg-type]
    assert weight.grad.tolist() == [6.0]
