"""Sampling of one token, compared with transformers and by its own rules."""

import math
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.sampling.next_token import (
    GenerateOptions,
    apply_repetition_penalty,
    check_logits,
    filter_logits,
    log_probabilities,
    sample_token,
)


@settings(max_examples=60)
@given(st.floats(0, 3), st.integers(0, 60), st.floats(0.01, 1), st.floats(0, 1, exclude_max=True))
def test_padding_ids_and_filtered_tokens_are_never_sampled(temperature, top_k, top_p, uniform):
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.linspace(5, -5, 40).repeat(2, 1)
    logits[:, 33:] = -math.inf
    picked = sample_token(logits, torch.tensor([uniform, math.nextafter(1, 0)]).double(), options)
    assert picked.max() < min(33, top_k or 33)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_repetition_penalty_never_makes_a_padding_id_possible(temperature):
    options = GenerateOptions(temperature=temperature, top_k=0, repetition_penalty=0.01)
    logits, seen = torch.linspace(2, -2, 40)[None], torch.ones(1, 40, dtype=torch.bool)
    logits[:, 33:] = -math.inf
    for penalty in (0.01, 100.0):
        options = replace(options, repetition_penalty=penalty)
        penalised = apply_repetition_penalty(logits, seen, penalty)
        picks = [
            sample_token(penalised, torch.tensor([u / 50]).double(), options) for u in range(50)
        ]
        assert max(picks) < 33


def test_top_p_keeps_the_smallest_set_of_tokens_that_reaches_it():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    for top_p, kept in [(0.4, {1}), (0.79, {1, 3}), (0.81, {0, 1, 3}), (1.0, {0, 1, 2, 3})]:
        options = GenerateOptions(top_p=top_p, top_k=0)
        assert {
            sample_token(logits, torch.tensor([u / 200]), options).item() for u in range(200)
        } == kept


def test_rounding_of_almost_equal_tokens_does_not_change_the_choice():
    logits = torch.tensor([0.1, 1.0, 1.0, 0.9])
    for number in torch.linspace(0, 0.99, 34).double():
        nudged = [logits + torch.tensor([0, x, -x, 0]) for x in (1e-6, -1e-6)]
        options = GenerateOptions(top_k=3)
        one, other = (sample_token(x[None], number[None], options) for x in nudged)
        assert one == other


def test_frequencies_are_the_softmax_of_the_logits():
    logits = torch.tensor([0.1, 1.3, -0.4]).repeat(30_000, 1)
    uniforms = torch.rand(30_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = sample_token(logits, uniforms, GenerateOptions(temperature=0.7, top_k=0))
    shares = torch.bincount(picked, minlength=3) / 30_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 0, 1), (1.0, 9, 1), (1.3, 0, 0.8), (0.9, 30, 0.6)]
)
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_probabilities_are_those_of_transformers(temperature, top_k, top_p, penalty):
    logits = torch.randn(3, 80, generator=torch.Generator().manual_seed(2)) * 3
    ids = torch.tensor([[1, 2, 2, 5], [7, 0, 70, 71], [3, 3, 3, 3]])
    theirs = [
        transformers.RepetitionPenaltyLogitsProcessor(penalty),
        transformers.TemperatureLogitsWarper(temperature),
        *([transformers.TopKLogitsWarper(top_k)] if top_k else []),
        *([transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []),
    ]
    wanted = transformers.LogitsProcessorList(theirs)(ids, logits).double().softmax(-1)
    options = GenerateOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    seen = torch.zeros(3, 80, dtype=torch.bool).scatter(1, ids, True)
    found, kept = filter_logits(apply_repetition_penalty(logits, seen, penalty), options)
    ours = torch.zeros(3, 80).double().scatter(1, kept, found / found.sum(-1, keepdim=True))
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)


def test_log_probabilities_are_the_log_softmax():
    logits, tokens = torch.randn(4, 9) * 5, torch.tensor([0, 3, 8, 3])
    wanted = logits.log_softmax(-1)[torch.arange(4), tokens]
    torch.testing.assert_close(log_probabilities(logits, tokens), wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    check_logits(torch.tensor([[-math.inf, 1.0]]))
    with pytest.raises(ValueError, match="logits are not numbers"):
        check_logits(torch.tensor([[0.0, 1.0], [bad, 1.0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 cannot divide"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 is negative"),
        ({"top_p": 0.0}, "top_p=0.0 is not a probability"),
        ({"top_p": 1.5}, "top_p=1.5 is not a probability"),
        ({"max_tokens": 0}, "max_tokens=0 gives no text"),
        ({"samples": 0}, "samples=0 gives no text"),
        ({"batch_size": 0}, "batch_size=0 gives no text"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not in"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan is not in"),
        ({"stop": ("a", "")}, "an empty stop string"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        GenerateOptions(**change)


def test_exactly_k_tokens_remain_of_those_that_tie():
    probabilities, ids = filter_logits(torch.zeros(2, 100), GenerateOptions(top_k=7))
    assert ids.shape == (2, 7)
    assert all(len(set(row)) == 7 for row in ids.tolist())
    assert (probabilities == 1 / 7).all()
