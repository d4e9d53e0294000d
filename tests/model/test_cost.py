"""The cost report prints the published figures; impossible arguments are refused."""

import json

import pytest

from model.cost import Arguments, cost_report, parse_arguments
from model.estimates.flops import GPUS
from model.estimates.table import format_report
from model.estimates.updates import UPDATES
from model.shapes import SHAPES
from tests.launching import python
from train.optimizers.registry import optimizer_name
from train.presets import PRESETS

LLAMA_FLAGS = "--norm rmsnorm --mlp swiglu --position rope --no-bias --no-tied"


def printed(*words):
    return format_report(cost_report(*parse_arguments(list(words))))


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        ("gpt2", ("124,439,808", "124,475,904", "2,362,368", "50,257", "50,304")),
        ("gpt2 --n-embd 1280 --n-head 20", ("301,771,520",)),
        ("gpt3", ("174,604,259,328",)),
        (f"gpt2-xl {LLAMA_FLAGS}", ("2,127,057,600", "4,513,336,524,800")),
        ("modern", ("162,201,600", "1,630,745,395,200", "0.36% of a GPU's step", "soft-cap 15.0")),
        ("modern --gpus 8", ("2.83% of a GPU's step",)),
    ],
)
def test_the_table_prints_the_published_figures(words, figures):
    text = printed(*words.split())
    for figure in figures:
        assert figure in text, text


def test_the_optimizer_of_a_shape_is_that_of_its_preset():
    for name in SHAPES.keys() & PRESETS.keys():
        _, arguments = parse_arguments([name])
        assert arguments.optimizer == optimizer_name(PRESETS[name].optimizer), name


def test_another_optimizer_keeps_another_state_and_has_no_matrix_products():
    adamw, muon = (
        cost_report(*parse_arguments(["modern", "--optimizer", name])) for name in UPDATES
    )
    matrices = 4 * muon["parameters"]["padded"]["blocks"]
    memory = [report["memory_bytes"]["compiled"] for report in (adamw, muon)]
    assert memory[0]["optimizer"] - memory[1]["optimizer"] == matrices
    assert memory[0]["host_copy"] - memory[1]["host_copy"] == matrices
    assert (adamw["update"]["flops"], memory[0]["update"]) == (0, 0)
    assert adamw["time"]["tokens_per_second"] > muon["time"]["tokens_per_second"]


def test_parts_that_a_shape_does_not_have_are_not_printed():
    assert "scales of shortcuts" not in printed("modern")
    assert "scales of shortcuts                                   42" in printed(
        "modern", "--shortcuts"
    )


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


def test_the_time_follows_the_type_of_the_products():
    bfloat16, float32 = (
        cost_report(*parse_arguments(["gpt2", "--gpu", "a100", "--dtype", dtype]))["time"]
        for dtype in ("bfloat16", "float32")
    )
    assert float32["tokens_per_second"] == pytest.approx(bfloat16["tokens_per_second"] / 2)
    assert (float32["arithmetic"], float32["peak_flops"]) == ("TF32", 156e12)


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="shape gpt5 is not known; choose one of gpt2,"):
        parse_arguments(["gpt5"])


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
