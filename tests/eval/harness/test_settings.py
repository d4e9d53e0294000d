"""Generation settings of the harness: honoured, without effect, or refused by name."""

import pytest

from eval.harness.settings import generation_settings
from eval.sampling.next_token import GenerateOptions


def options(**settings) -> GenerateOptions:
    return generation_settings(settings, "float32").options


def test_settings_become_options_of_sampling():
    found = options(
        until=["\n", ""], max_gen_toks=7, max_tokens=9, do_sample=True, temperature=0.5, top_k=3,
        top_p=0.9, repetition_penalty=1.2, seed=5,
    )  # fmt: skip
    assert found == GenerateOptions(
        max_tokens=7, temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=1.2, seed=5,
        stop=("\n",), dtype="float32",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 0.7, "do_sample": False}, 0),
        ({"temperature": None, "do_sample": True}, 1),
        ({"temperature": None}, 0),
    ],
)
def test_text_is_greedy_unless_a_temperature_is_set(settings, temperature):
    assert options(**settings).temperature == temperature


def test_null_switches_a_filter_off_and_an_absent_one_has_the_default_of_transformers():
    assert (options(top_k=None, top_p=None).top_k, options(top_p=None).top_p) == (0, 1.0)
    assert options().top_k == 50


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"min_p": 0.1},
        {"length_penalty": 0.5},
        {"early_stopping": True},
        {"typical_p": 0.9},
        {"anything_new": 1},
        {"num_beams": [4]},
        {"temperature": "warm"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": 1.5},
        {"top_k": -1},
        {"top_p": 7},
        {"repetition_penalty": 0},
        {"repetition_penalty": True},
        {"do_sample": "yes"},
        {"until": 3},
        {"until": ["a", 3]},
        {"max_gen_toks": 0, "max_tokens": 4},
        {"max_gen_toks": 10**400},
    ],
)
def test_other_settings_and_values_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings)).replace("max_gen_toks", "max_")):
        options(**settings)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 1}, {"min_p": 0.0}, {"min_p": None}, {"use_cache": True}]
)
def test_values_that_change_no_text_are_accepted(settings):
    assert options(**settings) == options()


def test_max_length_counts_the_prompt_too():
    found = generation_settings({"max_length": 20, "max_gen_toks": 99}, "auto")
    options = [found.options_for(length) for length in (5, 19)]
    assert [one.max_tokens for one in options if one] == [15, 1]
    assert found.options_for(20) is None
