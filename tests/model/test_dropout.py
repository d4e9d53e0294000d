"""Dropout: where it is, that its mean changes nothing, and that only a training step has it."""

from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.dropout import dropped, set_random_state
from model.gpt import GPT
from model.hf_format.config import hf_config, ratchet_config
from model.loss import NextTokenLoss
from model.shapes import SHAPES

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=16, vocab_size=128)
MODERN = replace(SHAPES["modern"], n_layer=2, n_head=2, n_embd=16, context_length=16)
IDS = torch.arange(32).view(2, 16)


def loss_of(shape, key=1, compiled=False, dropout=0.2):
    model = GPT(replace(shape, dropout=dropout))
    model.initialise(0)
    for parameter in model.parameters():  # also what starts at zero must matter
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(3))
    step = NextTokenLoss(model)
    step = torch.compile(step, backend="aot_eager") if compiled else step
    set_random_state(key)
    loss = step(IDS, IDS)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def test_dropped_numbers_are_zero_and_the_mean_stays():
    set_random_state(0)
    x = torch.ones(400, 500)
    y = dropped(x, 0.1)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    assert dropped(x, 0.0) is x


@pytest.mark.parametrize("shape", [SHAPE, MODERN], ids=["gpt2", "modern"])
def test_the_random_state_alone_decides_what_a_training_step_drops(shape):
    (first, gradient), (again, same), (other, _) = (loss_of(shape, key) for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(gradient, same, strict=True))
    assert not torch.equal(first, other)


def test_a_share_of_0_draws_no_random_number_and_is_the_network_without_it():
    plain, _ = loss_of(SHAPE, dropout=0.0)
    set_random_state(1)
    before = torch.get_rng_state()
    again, _ = loss_of(SHAPE, dropout=0.0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(plain, again)
    assert loss_of(SHAPE)[0] != plain


def test_it_is_at_the_embedding_at_attention_and_behind_each_layer(monkeypatch):
    seen, attention = [], []
    model = GPT(replace(SHAPE, dropout=0.25))
    original = torch.nn.functional.scaled_dot_product_attention

    def noted(q, k, v, mask, share, is_causal):
        attention.append(share)
        return original(q, k, v, mask, share, is_causal=is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    for file in ("model.gpt", "model.blocks"):
        monkeypatch.setattr(f"{file}.dropped", lambda x, share: seen.append(share) or x)
    NextTokenLoss(model)(IDS, IDS)
    assert (seen, attention) == ([0.25] * 5, [0.25] * 2)


def test_evaluation_and_sampling_never_drop_even_in_training_mode():
    model = GPT(replace(SHAPE, dropout=0.5)).train()
    model.initialise(0)
    assert torch.equal(model(IDS), model(IDS))
    cache = model.new_cache(2, 16)
    torch.testing.assert_close(model.hidden(IDS, cache=cache), model.hidden(IDS))


@pytest.mark.long
def test_the_compiled_step_draws_by_the_same_state():
    assert torch.equal(loss_of(SHAPE, 1, True)[0], loss_of(SHAPE, 1, True)[0])
    assert not torch.equal(loss_of(SHAPE, 1, True)[0], loss_of(SHAPE, 2, True)[0])


@pytest.mark.parametrize("share", [-0.1, 0.95, float("nan"), "half", None])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="dropout=.*0.1"):
        GPTConfig(dropout=share)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (SHAPE, ("attn_pdrop", "embd_pdrop", "resid_pdrop")),
        (MODERN, ("attention_dropout",)),
    ],
)
def test_an_export_names_the_share_and_an_import_reads_it(tmp_path, shape, names):
    written = hf_config(replace(shape, dropout=0.3), 0)
    assert {name: written[name] for name in names} == dict.fromkeys(names, 0.3)
    assert ratchet_config(tmp_path, written).dropout == 0.3
    assert ratchet_config(tmp_path, written | dict.fromkeys(names, "much")).dropout == 0


def test_a_gpt2_that_names_no_share_has_the_default_of_its_class(tmp_path):
    written = hf_config(SHAPE, 0)
    assert ratchet_config(tmp_path, written).dropout == 0
    del written["embd_pdrop"]
    assert ratchet_config(tmp_path, written).dropout == 0.1
