"""The network against transformers, and its own properties."""

import math

import pytest
import torch
import transformers

from model.blocks import attention_backend
from model.config import GPTConfig
from model.gpt import GPT
from model.loss import NextTokenLoss

SMALL = GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=300)
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}


def fresh(config, seed=0):
    model = GPT(config)
    model.initialise(seed)
    return model.eval()


def weights_from_transformers(config, state):
    """GPT-2's weights under our names: Conv1D transposed, vocabulary padded with zeros."""
    weights = {k.removeprefix("transformer."): v for k, v in state.items() if k != "lm_head.weight"}
    for name in weights:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weights[name] = weights[name].T
    padding = config.padded_vocab_size - config.vocab_size
    weights["wte.weight"] = torch.nn.functional.pad(weights["wte.weight"], (0, 0, 0, padding))
    return weights


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "context", "vocab"),
    [(1, 1, 16, 8, 100), (2, 4, 32, 24, 384), (3, 3, 48, 16, 1000)],
)
def test_logits_equal_those_of_transformers(n_layer, n_head, n_embd, context, vocab):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=context, vocab_size=vocab
        )
    ).eval()
    for parameter in theirs.parameters():  # biases and norms start trivial: make them count
        torch.nn.init.normal_(parameter, std=0.2)
    config = GPTConfig(n_layer, n_head, n_embd, context, vocab)
    ours = GPT(config).eval()
    ours.load_state_dict(weights_from_transformers(config, theirs.state_dict()))
    ids = torch.randint(vocab, (2, context))
    torch.testing.assert_close(ours(ids)[..., :vocab], theirs(ids).logits, atol=2e-5, rtol=1e-4)


def test_llama_shaped_logits_equal_those_of_transformers():
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=128,
            max_position_embeddings=16,
            rms_norm_eps=1e-5,
        )
    ).eval()
    config = GPTConfig(2, 4, 32, 16, 128, mlp_width=48, **LLAMA)
    ours = GPT(config).eval()
    ours.load_state_dict(llama_weights(theirs.state_dict()))
    ids = torch.randint(128, (2, 16))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


def llama_weights(state):
    ours = {
        "wte.weight": state["model.embed_tokens.weight"],
        "ln_f.weight": state["model.norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for layer in range(2):
        there, here = f"model.layers.{layer}.", f"h.{layer}."
        qkv = [state[f"{there}self_attn.{x}_proj.weight"] for x in "qkv"]
        ours[here + "attn.c_attn.weight"] = torch.cat(qkv)
        ours[here + "attn.c_proj.weight"] = state[there + "self_attn.o_proj.weight"]
        ours[here + "mlp.c_gate.weight"] = state[there + "mlp.gate_proj.weight"]
        ours[here + "mlp.c_fc.weight"] = state[there + "mlp.up_proj.weight"]
        ours[here + "mlp.c_proj.weight"] = state[there + "mlp.down_proj.weight"]
        ours[here + "ln_1.weight"] = state[there + "input_layernorm.weight"]
        ours[here + "ln_2.weight"] = state[there + "post_attention_layernorm.weight"]
    return ours


@pytest.mark.slow
def test_first_loss_of_gpt2_is_that_of_a_uniform_guess():
    config = GPTConfig(n_layer=2, n_head=12, n_embd=768, context_length=256)
    ids = torch.randint(50257, (2, 257), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = NextTokenLoss(fresh(config, 1337))(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss - (math.log(50304) + 0.0002 * 768)) < 0.03


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, same, other = (fresh(SMALL, seed).wte.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_residual_projections_start_smaller():
    model = fresh(GPTConfig(n_layer=8, n_head=4, n_embd=128, context_length=8, vocab_size=128))
    assert model.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_a_later_token_never_changes_an_earlier_logit():
    model, ids = fresh(SMALL), torch.randint(300, (1, 16))
    changed = ids.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 300
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


@pytest.mark.parametrize("fields", [{}, {"position": "rope"}])
def test_steps_with_a_cache_give_the_states_of_one_pass(fields):
    config = GPTConfig(2, 2, 32, 16, 300, **fields)
    model, ids = fresh(config), torch.randint(300, (3, 12))
    cache = model.new_cache(3, 16)
    with torch.no_grad():
        parts = [model.hidden(ids[:, :5], cache=cache)]
        parts += [model.hidden(ids[:, t : t + 1], cache=cache) for t in range(5, 12)]
        torch.testing.assert_close(torch.cat(parts, 1), model.hidden(ids), atol=1e-5, rtol=1e-4)


def test_logits_for_scoring_are_float32_under_autocast_far_from_zero_too():
    model = fresh(SMALL)
    states = torch.randn(1, 40, 32)
    with torch.no_grad():
        model.wte.weight[:, 0] -= 25.0  # shifts all logits of a state alike
        states[..., 0] = 4.0
        exact = model.masked_logits(states)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.masked_logits(states), exact)
    assert exact[..., :300].max() < -90


def test_padding_ids_have_no_probability():
    logits = fresh(SMALL).masked_logits(torch.randn(1, 2, 32))
    assert logits.shape == (1, 2, 384)
    assert torch.isinf(logits[..., 300:]).all()
    assert torch.isfinite(logits[..., :300]).all()


def test_a_mask_lets_two_endings_share_their_context():
    model = fresh(SMALL)
    context, one, two = [5, 6, 7], [8, 9], [10, 11]
    mask = torch.ones(7, 7).tril().bool()
    mask[5:, 3:5] = False  # the second ending does not see the first
    positions = torch.tensor([0, 1, 2, 3, 4, 3, 4])
    shared = model.hidden(torch.tensor([context + one + two]), positions, mask)
    alone = model.hidden(torch.tensor([context + two]))
    torch.testing.assert_close(shared[:, 5:], alone[:, 3:], atol=1e-5, rtol=1e-4)


def test_too_many_tokens_are_refused_with_the_limit():
    with pytest.raises(ValueError, match="17 tokens are more than context_length=16"):
        fresh(SMALL).hidden(torch.zeros(1, 17, dtype=torch.int64))


def test_the_attention_kernel_in_use_has_a_name():
    assert attention_backend(SMALL, torch.device("cpu"), torch.float32) in ("flash", "math")
