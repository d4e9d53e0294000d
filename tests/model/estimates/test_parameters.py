"""Counted parameters against transformers, published counts and the network itself."""

import itertools

import pytest
import torch
import transformers

from model.config import GPTConfig
from model.estimates.parameters import attention_parameters, count_parameters
from model.gpt import GPT
from model.shapes import SHAPES

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
FIELDS = {
    "norm": ("layernorm", "rmsnorm"),
    "mlp": ("gelu", "swiglu"),
    "position": ("learned", "rope"),
    "bias": (True, False),
    "tied": (True, False),
    "mlp_width": (None, 40),
    "vocab_size": (256, 300),  # whole tiles, and padded to 384
}


def on_meta(config):
    with torch.device("meta"):
        return GPT(config)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_published_counts_are_those_of_transformers(name):
    shape = SHAPES[name]
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd}
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    assert count_parameters(shape, padded=False).total == theirs.num_parameters()


def test_counts_of_every_combination_of_fields_are_those_of_the_network():
    for values in itertools.product(*FIELDS.values()):
        fields = dict(zip(FIELDS, values, strict=True))
        config = GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=16, **fields)
        built = sum(p.numel() for p in on_meta(config).parameters())
        assert count_parameters(config).total == built, fields


@pytest.mark.parametrize("fields", [{}, LLAMA])
def test_every_part_has_the_parameters_of_that_part_of_the_network(fields):
    config = GPTConfig(2, 2, 32, 16, 300, **fields)
    sizes = {name: p.numel() for name, p in on_meta(config).named_parameters()}
    parts = {
        "wte.": "token_embedding",
        "wpe.": "position_embedding",
        "h.": "blocks",
        "ln_f.": "final_norm",
        "lm_head.": "untied_head",
    }
    for prefix, part in parts.items():
        built = sum(n for name, n in sizes.items() if name.startswith(prefix))
        assert getattr(count_parameters(config), part) == built, part


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (SHAPES["gpt2"], 124_439_808),
        (GPTConfig(n_layer=12, n_head=20, n_embd=1280), 301_771_520),
        (SHAPES["gpt3"], 174_604_259_328),
        (GPTConfig(48, 25, 1600, **LLAMA), 2_127_057_600),
    ],
)
def test_parameter_counts_are_the_published_ones(config, published):
    assert count_parameters(config, padded=False).total == published


def test_attention_of_width_768_has_the_published_parameters():
    assert attention_parameters(SHAPES["gpt2"]) == 2_362_368
