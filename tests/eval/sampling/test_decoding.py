"""Samples drawn with a KV cache, compared with recomputing the whole window for every token."""

import math
from dataclasses import replace

import pytest
import torch

from data_prep.tokenizer import gpt2_tokenizer
from eval.sampling.decoding import sample_batches, split_into_batches, start_samples
from eval.sampling.next_token import (
    GenerateOptions,
    apply_repetition_penalty,
    sample_token,
    uniform_numbers,
)
from tests.eval_subjects import TINY_MODERN, generate, tiny_model

MODEL = tiny_model(context_length=24).eval()
TOKENIZER = gpt2_tokenizer()
END = TOKENIZER.end_of_text
PROMPTS = ["A list", "", "word " * 40, "One two three four", "Five six"]


@torch.no_grad()
def recomputed(prompt, options, where=(0, 0), model=MODEL):
    """The same tokens without a cache, by the stated rule for a full window."""
    uniforms, ids = uniform_numbers(options.seed, *where, options.max_tokens), list(prompt)
    window, context_length = list(prompt), model.config.context_length
    for step in range(options.max_tokens):
        window = window[-(context_length // 2) :] if len(window) > context_length else window
        logits = model.masked_logits(model.hidden(torch.tensor([window])))[:, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool).index_fill(1, torch.tensor(ids), True)
        logits = apply_repetition_penalty(logits, seen, options.repetition_penalty)
        token = sample_token(logits, uniforms[step : step + 1], options).item()
        if token == END:
            break
        window, ids = [*window, token], [*ids, token]
    return ids[len(prompt) :]


def drawn(prompts, options, model=MODEL):
    """The finished samples."""
    samples = start_samples(TOKENIZER, prompts, options)
    sample_batches(model, split_into_batches(samples, options), options)
    return [sample.to_sample() for sample in samples]


def tokens_of(samples):
    return [sample.token_ids for sample in samples]


GREEDY = {"temperature": 0.0}
CASES = [
    (shape, change)
    for shape in ({}, {"position": "rope", "norm": "rmsnorm", "tied": False})
    for change in (GREEDY, {}, {"temperature": 0.7, "repetition_penalty": 1.4})
]
CASES += [(TINY_MODERN, GREEDY), ({**TINY_MODERN, "n_layer": 3, "shortcuts": True}, GREEDY)]


@pytest.mark.parametrize(("shape", "change"), CASES)
def test_text_with_a_cache_equals_recomputation_past_the_window(shape, change):
    options = GenerateOptions(max_tokens=60, **change)
    model = tiny_model(context_length=24, **shape).eval()
    samples = drawn(PROMPTS, options, model)
    for index, prompt in enumerate(PROMPTS):
        ids = TOKENIZER.encode(prompt) or [END]
        assert list(samples[index].token_ids) == recomputed(ids, options, (index, 0), model)


def test_a_window_of_one_token_continues():
    model = tiny_model(context_length=1).eval()
    options = GenerateOptions(max_tokens=5)
    [sample] = drawn(["A list"], options, model)
    window, expected = TOKENIZER.encode("A list")[-1], []
    for uniform in uniform_numbers(options.seed, 0, 0, 5):
        logits = model.masked_logits(model.hidden(torch.tensor([[window]])))[:, -1]
        window = sample_token(logits, uniform[None], options).item()
        expected.append(window)
    assert list(sample.token_ids) == expected


@pytest.mark.parametrize(("batch_size", "shape"), [(1, {}), (4, {}), (15, {}), (4, TINY_MODERN)])
def test_a_sample_depends_only_on_seed_prompt_and_sample(batch_size, shape):
    options, model = GenerateOptions(max_tokens=26, samples=3), tiny_model(24, **shape).eval()
    together = tokens_of(drawn(PROMPTS, options, model))
    assert len(set(together)) == 15
    assert tokens_of(drawn(PROMPTS, replace(options, batch_size=batch_size), model)) == together
    assert tokens_of(drawn(PROMPTS, replace(options, samples=1), model)) == together[::3]
    assert tokens_of(drawn(PROMPTS[:2], options, model)) == together[:6]
    assert tokens_of(drawn(PROMPTS[:1], replace(options, seed=1), model))[0] != together[0]


def test_a_longer_text_starts_like_a_shorter_one():
    short, long = (drawn(["A"], GenerateOptions(max_tokens=n))[0].token_ids for n in (10, 40))
    assert long[:10] == short


def test_finished_samples_do_not_change_the_others():
    options = GenerateOptions(max_tokens=25, samples=6)
    whole = drawn(["A list"], options)
    stop = next(x for x in "zqjxkvw" if 0 < sum(x in sample.text for sample in whole) < 5)
    stopped = drawn(["A list"], replace(options, stop=(stop,)))
    assert {sample.finish_reason for sample in stopped} == {"stop", "length"}
    for one, other in zip(whole, stopped, strict=True):
        assert other.text == one.text.split(stop)[0]
        assert other.token_ids == one.token_ids[: len(other.token_ids)]


def test_sampling_does_not_change_torch_or_the_model():
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
    [sample] = drawn(["A word"], GenerateOptions(), model)
    assert (sample.token_ids, sample.finish_reason) == ((), "end_of_text")


def test_the_sum_of_log_probabilities_is_that_of_the_unmodified_model():
    [sample] = drawn(["A list"], GenerateOptions(max_tokens=8, temperature=0.5, top_p=0.9))
    prompt = TOKENIZER.encode("A list")
    ids = torch.tensor([[*prompt, *sample.token_ids]])
    nats = MODEL.masked_logits(MODEL.hidden(ids[:, :-1])).log_softmax(-1)
    own = nats.gather(2, ids[:, 1:, None])[0, len(prompt) - 1 :].sum().item()
    assert sample.logprob_sum == pytest.approx(own, rel=1e-5)


def test_out_of_memory_halves_the_batch_of_samples(monkeypatch, caplog):
    options = GenerateOptions(max_tokens=30, samples=2)
    wanted = tokens_of(drawn(PROMPTS, options))
    model = tiny_model(context_length=24).eval()
    calls = []

    def hidden(ids, cache, plain=model.hidden):
        calls.append(len(ids))
        if len(ids) > 4 and len(calls) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(ids, cache=cache)

    monkeypatch.setattr(model, "hidden", hidden)
    assert tokens_of(drawn(PROMPTS, options, model)) == wanted
    assert "out of memory: 5 samples per batch from now on" in caplog.text


def test_a_sample_that_does_not_fit_in_memory_is_an_error(monkeypatch):
    def hidden(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = tiny_model()
    monkeypatch.setattr(model, "hidden", hidden)
    with pytest.raises(ValueError, match="one sample does not fit the memory of cpu"):
        generate(model, TOKENIZER, ["A", "B"], GenerateOptions())


def test_weights_that_are_not_finite_are_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.ln_f.weight[3] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not numbers"):
            generate(model, TOKENIZER, ["A"], GenerateOptions(temperature=temperature))


def test_a_prompt_longer_than_the_context_is_cut_with_a_warning(caplog):
    long = [1000 + i for i in range(60)]
    options = GenerateOptions(max_tokens=10, temperature=0)
    texts = generate(MODEL, TOKENIZER, [TOKENIZER.decode(long)], options)
    ids = TOKENIZER.encode(TOKENIZER.decode(long))
    assert texts == [TOKENIZER.decode(recomputed(ids[-12:], options))]
    assert f"prompt 1 has {len(ids)} tokens" in caplog.text
