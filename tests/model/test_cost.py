"""The cost report prints the published figures; impossible arguments are refused."""

import json
import re

import pytest

from model.cost import Arguments, cost_report, parse_arguments
from model.estimates.flops import GPUS
from model.estimates.table import format_report
from model.shapes import SHAPES
from storage.run_folder import RunFolder
from tests.launching import python
from train.checkpoints.disk_space import space_for_checkpoints
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
        # https://github.com/karpathy/nanoGPT transformer_sizing.ipynb
        ("gpt2", ("1,769,472", "589,824", "4,718,592", "43,486,543,872", "115,964,116,992")),
        # Stanford CS336, assignment 1, problem transformer_accounting: 33 times the FLOPs
        (
            f"gpt2-xl {LLAMA_FLAGS} --context-length 16384",
            ("149,522,795,724,800", "4,513,336,524,800", "66.9%", "32.3%", "27.6%", "33.13 times"),
        ),
        ("gpt2 --micro-batch 16 --gpus 8", ("micro-steps of a step", "of 16 x 1,024 tokens")),
        ("gpt2 --tokens 100000000", ("3.4 min",)),
        ("gpt2 --document-tokens 500", ("773,227,483", "512.5", "287.7", "mask within documents")),
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


def test_the_checkpoints_kept_are_those_of_its_preset_and_so_is_the_disk_space(tmp_path):
    for name in SHAPES.keys() & PRESETS.keys():
        _, arguments = parse_arguments([name])
        config, disk = PRESETS[name], cost_report(name, arguments)["disk_bytes"]
        steps = config.steps or 19_000
        space = space_for_checkpoints(RunFolder(tmp_path), config, config.model, steps)
        assert (space.checkpoints, space.needed) == (disk["kept"], disk["checkpoints"]), name


def test_money_is_the_price_of_all_gpu_hours():
    report = cost_report(*parse_arguments(["gpt2", "--gpus", "8", "--price", "2.5"]))
    rate = 0.42 * 8 * 989e12 / report["training_flops_per_token"]["6N + 12LCT (PaLM; MFU)"]
    hours = 1e10 / rate / 3600
    assert report["money"]["total"] == pytest.approx(2.5 * 8 * hours)
    assert report["time"]["hours"] == pytest.approx(hours)
    assert cost_report(*parse_arguments(["gpt2"]))["money"]["total"] is None


def test_a_run_that_does_not_fit_says_so_beside_its_time():
    assert "no window fits such a GPU" in printed("gpt3")
    assert "no window fits" not in printed("gpt2")


def test_the_table_fits_80_columns():
    words = ("gpt2-xl", *LLAMA_FLAGS.split(), "--context-length", "16384", "--price", "3")
    _, *lines = printed(*words, "--gpus", "8", "--gpu", "a100-40gb-pcie").splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_all_gpus_are_listed_with_peak_and_memory():
    done = python("model/cost.py", "--gpu", "help")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["a100-40gb", "312", "156", "40", "GB"] in rows
    assert len(rows) == 1 + len(GPUS)


def test_another_optimizer_keeps_another_state_and_has_no_matrix_products():
    adamw, muon = (
        cost_report(*parse_arguments(["modern", "--optimizer", name])) for name in ("adamw", "muon")
    )
    matrices = 4 * muon["parameters"]["padded"]["blocks"]
    memory = [report["memory_bytes"]["compiled"] for report in (adamw, muon)]
    assert memory[0]["optimizer"] - memory[1]["optimizer"] == matrices
    assert memory[0]["host_copy"] - memory[1]["host_copy"] == matrices
    assert (adamw["update"]["flops"], memory[0]["update"]) == (0, 0)
    assert adamw["time"]["tokens_per_second"] > muon["time"]["tokens_per_second"]


def test_parts_that_a_shape_does_not_have_are_not_printed():
    assert "scales of shortcuts" not in printed("modern")
    assert re.search(r"scales of shortcuts +42 ", printed("modern", "--shortcuts"))


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
        (
            {"gpus": 6, "batch_tokens": 589_824, "reduction": "tree"},
            "gpus=6 is no power of two.* --gpus 4 or 8",
        ),
        ({"checkpoints": 0}, "checkpoints=0 is too small"),
        ({"price": -1.0}, "price=-1.0 is out of range; use 0 to 1,000,000"),
        ({"price": 1e308}, "price=1e\\+308 is out of range"),
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
