"""Fine-tuning: the checkpoint decides the shape, and its context may be cut."""

import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from model.config import GPTConfig
from model.shapes import SHAPES
from storage.atomic import write_json
from tests.runs import built, nano_config, run_to_end
from train.command_line.parse import parse


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the run of a model of 1 layer, 8 wide, T = 16."""
    folder = tmp_path_factory.mktemp("first")
    run_to_end(nano_config(folder, steps=3))
    return folder


def words(first, tmp_path, *more):
    latest = first / "run" / "checkpoints" / "latest"
    flags = ["demo", "--data", str(first / "data"), "--out", str(tmp_path / "run"), "--device=cpu"]
    return [*flags, "--init", str(latest), *more]


def test_init_decides_the_shape_without_any_flag(first, tmp_path):
    config = parse(words(first, tmp_path, "--batch-tokens=128", "--steps=3"))
    assert (config.model.n_layer, config.model.n_embd, config.network.context_length) == (1, 8, 16)
    run = built(config)
    run.close()
    saved = load_file(config.init / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in run.model.named_parameters())


def test_dropout_is_no_part_of_the_shape(first, tmp_path):
    config = parse(words(first, tmp_path, "--model.dropout=0.1", "--batch-tokens=128", "--steps=3"))
    assert (config.model.n_embd, config.model.dropout) == (8, 0.1)
    built(config).close()


def test_a_flag_that_contradicts_the_checkpoint_is_an_error_in_flags(first, tmp_path):
    with pytest.raises(ValueError, match=r"--model.n-layer 1, which contradicts .* 6;"):
        parse(words(first, tmp_path, "--model.n-layer", "6"))
    with pytest.raises(ValueError, match=r"has --model.bias, which contradicts --model.no-bias;"):
        parse(words(first, tmp_path, "--model.no-bias"))
    assert parse(words(first, tmp_path, "--model.n-layer=1", "--model.mlp-width=32"))


@pytest.mark.parametrize(
    ("flag", "own"),
    [
        ("--model.logit-softcap=30", r"logit-softcap 15\.0, .* --model.logit-softcap 30\.0;"),
        ("--model.logit-softcap=None", "logit-softcap 15.*softcap None;"),
        ("--model.norm-weight", "has --model.no-norm-weight, .* --model.norm-weight;"),
        ("--model.no-qk-norm", "has --model.qk-norm, which contradicts --model.no-qk-norm;"),
        ("--model.shortcuts", "has --model.no-shortcuts, .* --model.shortcuts;"),
        ("--model.mlp=gelu", "has --model.mlp relu2, .* --model.mlp gelu;"),
    ],
)
def test_a_flag_that_contradicts_a_modern_checkpoint_is_an_error_in_flags(tmp_path, flag, own):
    write_json(tmp_path / "model.json", {"format": 1, "config": asdict(SHAPES["modern"])})
    given = ["modern", "--data", "data", "--out", "run", "--init", str(tmp_path)]
    with pytest.raises(ValueError, match=own):
        parse([*given, flag])
    assert parse([*given, "--model.logit-softcap=15"]).model == SHAPES["modern"]


@pytest.mark.parametrize("flag", ["--context-length", "--model.context-length"])
def test_a_shorter_context_takes_the_first_positions(first, tmp_path, flag):
    config = parse(words(first, tmp_path, flag, "8", "--batch-tokens=128", "--steps=3"))
    run = run_to_end(config)
    assert run.model.config.context_length == 8
    fresh = built(replace(config, out=tmp_path / "again"))
    saved = load_file(config.init / "model.safetensors")["wpe.weight"]
    assert torch.equal(fresh.model.wpe.weight, saved[:8])
    fresh.close()


def test_a_longer_context_is_refused_with_the_longest(first, tmp_path):
    with pytest.raises(ValueError, match="positions for 16 tokens.*give --context-length 16 or l"):
        built(parse(words(first, tmp_path, "--context-length=32", "--batch-tokens=128")))


def test_a_run_continues_when_the_weights_it_started_from_are_gone(first, tmp_path):
    shutil.copytree(first / "run" / "checkpoints" / "step_000003", tmp_path / "own")
    config = replace(nano_config(first, steps=4), out=tmp_path / "run", init=tmp_path / "own")
    run_to_end(config)
    shutil.rmtree(tmp_path / "own")
    run = built(replace(config, steps=6, allow=("steps",)))
    assert run.step == 4
    run.close()


def test_a_configuration_of_another_shape_is_refused(first, tmp_path):
    latest = first / "run" / "checkpoints" / "latest"
    shape = GPTConfig(n_layer=1, n_head=1, n_embd=16, context_length=16)
    with pytest.raises(ValueError, match="has --model.n-embd 8, which contradicts .* 16;"):
        built(replace(nano_config(first, model=shape), out=tmp_path / "run", init=latest))


def test_a_run_can_be_named_and_the_same_command_continues(first, tmp_path):
    given = words(first, tmp_path, "--batch-tokens=128", "--steps=3")
    given[given.index("--init") + 1] = str(first / "run")
    config = parse(given)
    assert config.init == first / "run"
    run_to_end(config)
    built(parse(given)).close()
