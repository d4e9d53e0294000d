"""Counted parameters against transformers, published counts and the network itself."""

import itertools
from dataclasses import replace

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
MODERN_FIELDS = {
    "norm": ("layernorm", "rmsnorm"),
    "norm_weight": (True, False),
    "embedding_norm": (True, False),
    "qk_norm": (True, False),
    "bias": (True, False),
    "logit_softcap": (None, 15.0),
    "shortcuts": (True, False),
    "mlp": ("relu2",),
}
MODERN = replace(SHAPES["modern"], shortcuts=True, norm_weight=True)


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


@pytest.mark.parametrize(("choices", "layers"), [(FIELDS, 1), (MODERN_FIELDS, 3)])
def test_counts_of_every_combination_of_fields_are_those_of_the_network(choices, layers):
    for values in itertools.product(*choices.values()):
        fields = dict(zip(choices, values, strict=True))
        config = GPTConfig(n_layer=layers, n_head=2, n_embd=32, context_length=16, **fields)
        built = sum(p.numel() for p in on_meta(config).parameters())
        assert count_parameters(config).total == built, fields


@pytest.mark.parametrize("shape", [SHAPES["gpt2"], replace(SHAPES["gpt2"], **LLAMA), MODERN])
def test_every_part_has_the_parameters_of_that_part_of_the_network(shape):
    config = replace(shape, n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=300)
    sizes = {name: p.numel() for name, p in on_meta(config).named_parameters()}
    parts = {
        "wte.": "token_embedding",
        "wpe.": "position_embedding",
        "h.": "blocks",
        "ln_f.": "final_norm",
        "lm_head.": "untied_head",
        "ln_e.": "embedding_norm",
        "shortcuts.": "shortcuts",
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


@pytest.mark.parametrize(
    ("name", "total", "matrices"),
    [
        ("modern", 162_201_600, 72 * 768 * 768 * 2),
        ("modern-medium", 405_012_480, 24 * 12 * 1024**2),
        ("modern-large", 836_567_040, 36 * 12 * 1280**2),
    ],
)
def test_modern_shapes_are_matrices_embedding_and_head_alone(name, total, matrices):
    counts = count_parameters(SHAPES[name])
    built = sum(p.numel() for p in on_meta(SHAPES[name]).parameters())
    assert (counts.total, counts.blocks) == (total, matrices)
    assert built == total
    width = SHAPES[name].n_embd
    assert counts.token_embedding == counts.untied_head == 50_304 * width
