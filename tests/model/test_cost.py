"""What a model costs: against transformers, against the network itself, against the figures."""

import itertools
import json

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from model.config import GPTConfig
from model.cost import Arguments, cost_report, parse_arguments
from model.estimates.flops import (
    GPUS,
    causal_flops_per_token,
    forward_flops,
    matmul_flops_per_token,
    peak_flops,
    training_flops_per_token,
)
from model.estimates.memory import StepShape
from model.estimates.parameters import count_parameters
from model.estimates.prediction import predict
from model.estimates.table import format_report
from model.gpt import GPT
from model.shapes import SHAPES
from tests.launching import python

LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
XL_LLAMA = GPTConfig(48, 25, 1600, **LLAMA)
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


def printed(*words):
    return format_report(cost_report(*parse_arguments(list(words))))


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


@pytest.mark.parametrize("fields", [{}, {"mlp": "swiglu", "mlp_width": 40}, LLAMA])
def test_forward_flops_are_those_that_torch_counts(fields):
    config = GPTConfig(2, 4, 32, 16, 300, **fields)
    ids = torch.zeros(1, 16, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta(config)(ids)
    assert sum(forward_flops(config).values()) == counter.get_total_flops()


def test_forward_flops_of_the_large_llama_shape_are_the_published_ones():
    assert sum(forward_flops(XL_LLAMA, padded=False).values()) == 4_513_336_524_800


def test_the_three_conventions_of_gpt2_are_those_of_their_authors():
    shape = SHAPES["gpt2"]
    assert training_flops_per_token(shape) == 6 * 123_689_472 + 12 * 12 * 768 * 1024
    products = 6 * (84_934_656 + 38_633_472)
    assert matmul_flops_per_token(shape) == products + 12 * 12 * 768 * 1024
    assert causal_flops_per_token(shape) == products + 6 * 12 * 768 * 1024


def test_matmul_only_is_three_forward_passes():
    per_window = matmul_flops_per_token(XL_LLAMA) * XL_LLAMA.context_length
    assert per_window == 3 * sum(forward_flops(XL_LLAMA).values())


LLAMA_FLAGS = "--norm rmsnorm --mlp swiglu --position rope --bias False --tied False"


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        ("gpt2", ("124,439,808", "124,475,904", "2,362,368", "50,257", "50,304")),
        ("gpt2 --n-embd 1280 --n-head 20", ("301,771,520",)),
        ("gpt3", ("174,604,259,328",)),
        (f"gpt2-xl {LLAMA_FLAGS}", ("2,127,057,600", "4,513,336,524,800")),
    ],
)
def test_the_table_prints_the_figures_that_we_are_judged_by(words, figures):
    text = printed(*words.split())
    for figure in figures:
        assert figure in text, text


def test_a_model_that_no_gpu_holds_has_no_micro_batch():
    report = cost_report(*parse_arguments(["gpt3"]))
    assert report["micro_batch"]["largest"] == {"compiled": None, "not_compiled": None}
    assert report["memory_bytes"]["compiled"]["peak"] > 10 * GPUS["b200"].memory_bytes


def test_the_script_writes_what_it_prints(tmp_path):
    done = python("model/cost.py", "demo", "--gpus", "2", "--json", str(tmp_path / "cost.json"))
    report = json.loads((tmp_path / "cost.json").read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{report['parameters']['published']['total']:,}" in done.stdout
    assert report["time"]["gpu_hours"] == pytest.approx(48 * report["time"]["days"])


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="shape gpt5 is not known; choose one of gpt2,"):
        parse_arguments(["gpt5"])


def test_predicted_speed_is_the_assumed_utilisation_by_our_own_formula():
    step = StepShape(micro_batch=8, world_size=8)
    found = predict(SHAPES["gpt2"], step, "NVIDIA H200", mfu=0.5)
    spent = found.tokens_per_second * training_flops_per_token(SHAPES["gpt2"])
    assert spent == pytest.approx(0.5 * 8 * 989e12)


def test_no_speed_is_predicted_for_a_device_without_a_peak():
    found = predict(SHAPES["demo"], StepShape(4, torch.float32, False, device="cpu"))
    assert found.tokens_per_second is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("Tesla T4", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives_it(device, peak):
    assert peak_flops(device) == peak


def test_no_gpu_of_the_table_hides_a_later_one():
    for name, gpu in GPUS.items():
        found = next(n for n, other in GPUS.items() if other.part_of_name in gpu.part_of_name)
        assert found == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu": "v100"}, "gpu=v100 is not known; choose one of h200,"),
        ({"mfu": 0.0}, "mfu=0.0 is not a utilisation"),
        ({"gpus": 0}, "gpus=0 is too small"),
        ({"micro_batch": 0}, "micro_batch=0 is too small"),
        ({"micro_batch": 3}, "micro_batch=3 does not divide .* of 512 windows .*; try .* 512, or"),
        (
            {"gpus": 3},
            "batch_tokens=524288 is not a multiple of 3072 .*; try --batch-tokens 525312",
        ),
    ],
)
def test_impossible_questions_are_refused_with_the_cure(fields, message):
    with pytest.raises(ValueError, match=message):
        Arguments(**fields)
