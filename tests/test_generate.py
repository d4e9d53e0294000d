"""Sampling, against recomputation of the whole window for every token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokenizer import gpt2_tokenizer
from eval.generate import GenerateOptions, draw, generate, pick, uniform_numbers
from tests.eval_subjects import tiny_model

MODEL = tiny_model(context_length=24).eval()
TOKENIZER = gpt2_tokenizer()
END = TOKENIZER.end_of_text


def recomputed(prompt: list[int], options: GenerateOptions, sample: int = 0) -> list[int]:
    """The same text without a cache, by the stated rule for a full window."""
    uniforms, window, picked = uniform_numbers(options, sample), prompt, []
    for step in range(options.max_tokens):
        window = window[-12:] if len(window) > 24 else window
        logits = MODEL.live_logits(MODEL.hidden(torch.tensor([window])))[:, -1]
        token = pick(logits, uniforms[step : step + 1], options).item()
        if token == END:
            break
        window, picked = [*window, token], [*picked, token]
    return picked


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["A list", "", "word " * 40])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_text_with_a_cache_equals_recomputation_past_the_window(prompt, temperature):
    options = GenerateOptions(max_tokens=60, temperature=temperature)
    wanted = recomputed(TOKENIZER.encode(prompt) or [END], options)
    assert generate(MODEL, TOKENIZER, [prompt], options) == [TOKENIZER.decode(wanted)]


def test_a_sample_depends_on_seed_and_index_alone():
    options = GenerateOptions(max_tokens=20, samples=3)
    texts = generate(MODEL, TOKENIZER, ["One two", "Three four", "Five"], options)
    assert len(set(texts)) == 9
    prompt, uniforms = TOKENIZER.encode("Three four"), uniform_numbers(options, sample=4)
    alone = draw(MODEL, [prompt], uniforms[None], options, END)
    assert TOKENIZER.decode(alone[0]) == texts[4]
    other = GenerateOptions(max_tokens=20, samples=3, seed=1)
    assert generate(MODEL, TOKENIZER, ["One two"], other) != texts[:3]


def test_sampling_leaves_torch_and_the_model_as_they_were():
    MODEL.train()
    before = torch.get_rng_state()
    generate(MODEL, TOKENIZER, ["A", ""], GenerateOptions(max_tokens=5))
    assert torch.equal(before, torch.get_rng_state())
    assert MODEL.training
    MODEL.eval()


def test_generation_ends_at_end_of_text():
    model = tiny_model(bias=True)
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(model.wte.weight[END])
        model.wte.weight[END] *= 1e3
    assert generate(model, TOKENIZER, ["A word"], GenerateOptions(max_tokens=9)) == [""]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.integers(0, 60), st.floats(0.01, 1), st.floats(0, 1, exclude_max=True))
def test_dead_ids_and_impossible_tokens_are_never_picked(temperature, top_k, top_p, uniform):
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.linspace(5, -5, 40).repeat(2, 1)
    logits[:, 33:] = -math.inf
    picked = pick(logits, torch.tensor([uniform, math.nextafter(1, 0)]).double(), options)
    assert picked.max() < min(33, top_k or 33)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in [(0.4, 1), (0.79, 2), (0.81, 3), (1.0, 4)]:
        options = GenerateOptions(top_p=top_p, top_k=0)
        drawn = {pick(logits, torch.tensor([u / 200]), options).item() for u in range(200)}
        assert drawn == set(range(kept))


def test_frequencies_are_the_softmax_of_the_logits():
    logits = torch.tensor([0.1, 1.3, -0.4]).repeat(30_000, 1)
    uniforms = torch.rand(30_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = pick(logits, uniforms, GenerateOptions(temperature=0.7, top_k=0))
    shares = torch.bincount(picked, minlength=3) / 30_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 cannot divide"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 is negative"),
        ({"top_p": 0.0}, "top_p=0.0 is no share"),
        ({"top_p": 1.5}, "top_p=1.5 is no share"),
        ({"max_tokens": 0}, "max_tokens=0 gives no text"),
        ({"samples": 0}, "samples=0 gives no text"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        GenerateOptions(**change)


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="logits are not numbers"):
        pick(torch.tensor([[math.nan, 1.0]]), torch.tensor([0.5]), GenerateOptions())
