"""Each field of GPTConfig against plain formulas, and the initial weights of zero_outputs."""

import math
from dataclasses import replace

import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.shapes import SHAPES
from tests.model.plain_forward import plain_logits, plain_states
from train.optimizers.muon import MuonConfig, build_muon
from train.optimizers.registry import update

TINY = {"n_layer": 3, "n_head": 2, "n_embd": 24, "context_length": 12, "vocab_size": 100}
GPT2, MODERN = GPTConfig(**TINY), replace(SHAPES["modern"], **TINY)
LLAMA = GPTConfig(
    **TINY, norm="rmsnorm", mlp="swiglu", position="rope", bias=False, tied=False, mlp_width=40
)
ALONE = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "modern": MODERN,
    "norm without weight": replace(GPT2, norm_weight=False),
    "RMS norm without weight": replace(GPT2, norm="rmsnorm", norm_weight=False),
    "embedding norm": replace(GPT2, embedding_norm=True),
    "QK-norm": replace(GPT2, qk_norm=True),
    "QK-norm and rotation": replace(LLAMA, qk_norm=True),
    "ReLU squared": replace(GPT2, mlp="relu2"),
    "soft-cap": replace(GPT2, logit_softcap=3),
    "shortcuts": replace(GPT2, shortcuts=True),
    "modern with shortcuts": replace(MODERN, shortcuts=True),
}
IDS = torch.randint(100, (2, 12), generator=torch.Generator().manual_seed(5))


def drawn(config):
    """A network in which every parameter counts, those that begin at 0 or 1 too."""
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return model


@pytest.mark.parametrize("config", ALONE.values(), ids=ALONE)
def test_logits_and_gradients_equal_the_plain_formulas_in_float64(config):
    model = drawn(config)
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected = plain_logits(config, weights, IDS)
    expected.square().mean().backward()
    found = model(IDS)
    found.square().mean().backward()
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=2e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no part in the logits"
        gap = (parameter.grad - weights[name].grad).abs().max()
        assert gap < 2e-4 * weights[name].grad.abs().max(), name


@pytest.mark.parametrize("config", ALONE.values(), ids=ALONE)
def test_states_in_float64_equal_the_plain_formulas_but_for_angles_in_float32(config):
    model = drawn(config).double()
    expected = plain_states(config, dict(model.named_parameters()), IDS)
    torch.testing.assert_close(model.hidden(IDS), expected, atol=2e-6, rtol=0)


def test_the_scale_of_embedding_queries_and_keys_does_not_count_where_they_are_normalised():
    model = drawn(MODERN)
    before = model(IDS)
    with torch.no_grad():
        model.wte.weight.mul_(5)
        for block in model.h:
            block.attn.c_attn.weight[:48].mul_(3)  # queries and keys
    torch.testing.assert_close(model(IDS), before, atol=1e-3, rtol=1e-3)


def test_the_modern_network_has_no_vectors_and_the_parameters_of_its_specification():
    with torch.device("meta"):
        parameters = list(GPT(SHAPES["modern"]).parameters())
    assert sum(p.numel() for p in parameters) == 162_201_600
    assert {p.dim() for p in parameters} == {2}


def test_all_new_fields_are_off_by_default():
    assert GPTConfig() == replace(
        GPTConfig(),
        norm_weight=True,
        embedding_norm=False,
        qk_norm=False,
        logit_softcap=None,
        shortcuts=False,
        initial_weights="gpt2",
    )


# --- initial weights -------------------------------------------------------------------------


def started(**fields):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 64, "vocab_size": 1000}
    model = GPT(replace(SHAPES["modern"], **sizes, **fields))
    model.initialise(3)
    return model


def test_matrices_start_by_their_fan_in_and_what_ends_a_block_or_the_network_at_zero():
    model = started()
    stds = {name: p.std().item() for name, p in model.named_parameters()}
    assert stds["wte.weight"] == pytest.approx(1.0, rel=0.02)
    by_fan_in = math.sqrt(0.33 / 64)
    assert stds["h.0.attn.c_attn.weight"] == pytest.approx(by_fan_in, rel=0.03)
    assert stds["h.1.mlp.c_fc.weight"] == pytest.approx(by_fan_in, rel=0.03)
    zero = {name for name, p in model.named_parameters() if not p.any()}
    ends = {f"h.{layer}.{part}.c_proj.weight" for layer in (0, 1) for part in ("attn", "mlp")}
    assert zero == {"lm_head.weight"} | ends


def test_tied_or_learned_embeddings_start_as_small_as_those_of_gpt2():
    model = started(tied=True, position="learned", norm_weight=True, mlp="swiglu", bias=True)
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.wpe.weight.std().item() == pytest.approx(0.02, rel=0.05)
    by_fan_in = math.sqrt(0.33 / 64)
    assert model.h[0].mlp.c_gate.weight.std().item() == pytest.approx(by_fan_in, rel=0.03)
    assert {p.unique().item() for name, p in model.named_parameters() if "ln_" in name} == {1}


@pytest.mark.parametrize("fused", [False, True])
def test_the_first_loss_is_that_of_a_uniform_guess(fused):
    ids = torch.randint(1000, (2, 65), generator=torch.Generator().manual_seed(1))
    loss = NextTokenLoss(started(), fused)(ids[:, :-1], ids[:, 1:]).item()
    assert loss == pytest.approx(math.log(1024), abs=1e-3)


def gradients(model):
    model.zero_grad(set_to_none=True)
    ids = torch.randint(1000, (2, 65), generator=torch.Generator().manual_seed(1))
    NextTokenLoss(model)(ids[:, :-1], ids[:, 1:]).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_gradient_reaches_the_head_first_then_the_ends_of_blocks_and_then_all():
    model = started()
    optimizer = build_muon(model, MuonConfig())
    reached = []
    for step in range(3):
        reached.append({name for name, g in gradients(model).items() if g.any()})
        update(optimizer, step, 0.025, torch.zeros(()))
    assert reached[0] == {"lm_head.weight"}
    inner = {f"h.{i}.{name}.weight" for i in (0, 1) for name in ("attn.c_attn", "mlp.c_fc")}
    assert reached[2] - reached[1] == inner
    assert reached[2] == {name for name, _ in model.named_parameters()}
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_drawn_weights_depend_on_nothing_but_the_seed():
    torch.manual_seed(1)  # the global generators of two ranks may differ
    first = started()
    torch.manual_seed(2)
    with torch.no_grad():
        again = started()
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
