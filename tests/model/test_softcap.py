"""Soft-capped logits are the same in training, scoring and sampling, in any precision."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval.scoring.shared_context import SharedContext, score_contexts
from eval.subject import EvalOptions
from eval.tasks.val_loss import _token_losses
from model.loss import NextTokenLoss
from model.precision import autocast
from tests.eval_subjects import TINY_MODERN, tiny_model, tiny_subject
from train.guards.window_by_window import _window_loss

CAP = 0.8
SHAPE = {**TINY_MODERN, "logit_softcap": CAP, "vocab_size": 300}
IDS = torch.randint(300, (3, 21), generator=torch.Generator().manual_seed(2))
CPU = torch.device("cpu")


def float64_losses(model):
    """The loss of each target, from the states. Shape: (3, 20)."""
    states = model.hidden(IDS[:, :-1]).double()
    logits = CAP * torch.tanh(states @ model.head_weight.double().T / CAP)
    return F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def test_all_heads_give_the_logits_within_the_cap():
    model, states = tiny_model(**SHAPE), torch.randn(5, 16, generator=torch.manual_seed(1))
    raw = states.double() @ model.head_weight.double().T
    expected = (CAP * torch.tanh(raw / CAP)).float()
    assert raw.abs().max() > 2 * CAP
    for found in (model.head(states), model.float32_head(states)):
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    with autocast(torch.bfloat16, CPU):
        torch.testing.assert_close(model.float32_head(states), expected, atol=2e-6, rtol=0)
        assert model.head(states).dtype == torch.float32
        torch.testing.assert_close(model.head(states), expected, atol=0.1, rtol=0)
        masked = model.masked_logits(states)
    assert torch.equal(masked[:, 300:], torch.full((5, 84), -math.inf))
    torch.testing.assert_close(masked[:, :300], expected[:, :300], atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fused", [False, True])
def test_the_training_loss_is_that_of_float64(fused):
    model = tiny_model(**SHAPE)
    exact = float64_losses(model).mean().item()
    step = NextTokenLoss(model, fused)
    assert step(IDS[:, :-1], IDS[:, 1:]).item() == pytest.approx(exact, rel=2e-6)
    with autocast(torch.bfloat16, CPU):
        assert step(IDS[:, :-1], IDS[:, 1:]).item() == pytest.approx(exact, rel=2e-2)


@torch.no_grad()
def test_validation_and_the_search_for_a_bad_window_have_the_losses_of_float64():
    model = tiny_model(**SHAPE)
    exact = float64_losses(model)
    subject: Any = SimpleNamespace(model=model, separator=None)
    found = _token_losses(subject, IDS[:, :-1], IDS[:, 1:], padded=True)
    torch.testing.assert_close(found.flatten().double(), exact, atol=2e-6, rtol=1e-6)
    loss = _window_loss(model, IDS[0].numpy(), torch.float32, None).item()
    assert loss == pytest.approx(exact[:20].mean().item(), rel=1e-6)


@torch.no_grad()
def test_endings_are_scored_with_capped_logits_and_no_padding():
    subject = tiny_subject(**{**SHAPE, "vocab_size": 50257})
    context, endings = [5, 6, 7], ([8, 9], [10, 11, 12])
    found = score_contexts(subject, [SharedContext(context, endings)], EvalOptions())
    for row, ending in zip(found, endings, strict=True):
        ids = torch.tensor([context + ending])
        states = subject.model.hidden(ids[:, :-1])[0, 2:].double()
        logits = CAP * torch.tanh(states @ subject.model.head_weight.double().T / CAP)[:, :50257]
        nats = F.cross_entropy(logits, ids[0, 3:], reduction="sum").item()
        np.testing.assert_allclose(row[0], nats, rtol=1e-5)
