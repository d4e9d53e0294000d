"""`--config FILE`: settings from TOML or JSON, and every mistake in them by its key."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.training_config import EvalConfig
from model.config import GPTConfig
from storage.options.as_words import flag_words
from tests.golden.make import CHECKPOINT
from tests.runs import GOLDEN
from train.command_line.config_file import ConfigFile
from train.command_line.parse import parse
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.presets import PRESETS
from train.schedule import ScheduleConfig

TOML = """
steps = 30
out = "~/mine"
skip_windows = ["3:4"]
schedule.warmup_steps = 0.1
[optimizer]
name = "muon"
lr = 1
clip = "None"
[model]
n_layer = 2
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the present folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def written(name, content):
        Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
        return name

    return written


def test_the_settings_of_a_file_are_defaults_that_flags_change(write, tmp_path):
    words = ["--config", write("a.toml", TOML)]
    config = parse([*words, "--steps=40", "--optimizer.momentum=0.9"])
    assert config.optimizer == MuonConfig(lr=1.0, momentum=0.9, embedding_lr=0.03)
    assert (config.steps, config.model, config.skip_windows) == (40, GPTConfig(2), ("3:4",))
    assert (config.out, config.schedule.warmup_steps) == (tmp_path / "mine", 0.1)


def test_a_mixture_in_a_file_may_have_its_weights_as_numbers(write):
    text = 'out = "r"\ndata = ["a:0.5", "b:0.5"]\ndata_weights_at = [7, 0.25, 3]\n'
    assert parse(["--config", write("a.toml", text)]).data_weights_at == ("7", "0.25", "3")


def test_a_file_changes_the_preset_that_stands_before_it(write):
    file = write("a.json", {"eval": {"items": 3}, "optimizer": {"head_lr": 0.5}})
    config = parse(["demo", "--config", file, "--eval.val-tokens=auto"])
    demo = PRESETS["demo"]
    assert config == replace(
        demo,
        eval=replace(demo.eval, items=3),
        optimizer=replace(demo.optimizer, head_lr=0.5),
    )


def test_a_record_of_a_run_begins_another_one_with_its_settings(write, tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    record = "run/config.json"
    with pytest.raises(ValueError, match="give --out FOLDER .* or --continue run alone to cont"):
        parse(["--config", record])
    found = parse(["--config", record, "--out", "other"])
    assert found == replace(parse(["--out", "run"]), out=Path("other"))
    assert parse(["--continue", "run", "--config", write("a.json", {"steps": 9})]).steps == 9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"batch_token": 5}, "batch_token, which is no setting; perhaps you meant batch_tokens"),
        ({"lr": 5}, "lr, which is no setting; perhaps you meant optimizer.lr"),
        ({"model": {"n-layer": 5}}, "model.n-layer, .* perhaps you meant model.n_layer"),
        ({"optimizer": {"nam": "muon"}}, "optimizer.nam, .* you meant optimizer.name"),
        ({"zzz": {}}, "zzz, which is no setting; perhaps you meant one of those in a run's"),
        ({"steps": "many"}, "steps is 'many', not a whole number of at most 64 bits or None"),
        ({"steps": True}, "steps is True, not"),
        ({"steps": 0}, "steps=0 is out of range; use 1 or more"),
        ({"seed": 2**70}, "seed is 1180591620717411303424, not a whole number of at most 64 bits"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr is nan, not a number"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr is 1000"),
        ({"optimizer": {"name": "lamb"}}, "optimizer 'lamb' is not one of adamw, muon, sgd"),
        ({"optimizer": "muon"}, "optimizer: 'muon' is no group of settings"),
        ({"model": 3}, "model: 3 is no group of settings"),
        ({"compile": "yes"}, "compile is 'yes', not 'auto', 'on', 'max', 'off'"),
        ({"allow": "steps"}, "allow is 'steps', not a list of texts"),
        ({"data": ""}, "data '' is empty; give a path"),
        ([1], "holds no settings; write an object with some"),
        ("{", "is not readable JSON"),
        ("[" * 100_000, "is not readable JSON"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_key_and_rule(write, content, said):
    with pytest.raises(ValueError, match=rf"a\.json:? .*{said}"):
        parse(["--config", write("a.json", content)])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "steps 5", r"is not TOML \(.*line 1, column 7"),
        ("a.toml", "a = 1\na = 2", r"is not TOML \(Cannot overwrite a value .*\); correct it"),
        ("a.toml", "stop_at = 12:30:00\nsteps = 1979-05-27", "steps is '1979-05-27', not a whole"),
        ("a.yaml", "steps: 5", "is YAML, which is not read; write it as TOML"),
        ("settings", "steps = 5", r"ends in neither \.toml nor \.json"),
        ("", "", r"\. is a folder; give a \.toml or \.json file"),
        ("none.toml", None, r"cannot be read \(no such file or directory\)"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(write, name, content, said):
    if name and content is not None:
        write(name, content)
    with pytest.raises(ValueError, match=f"{name} ?.*{said}"):
        ConfigFile(Path(name)).over(Config())


def test_a_shape_in_a_file_may_not_contradict_the_weights(write):
    words = ["--init", str(CHECKPOINT), "--config"]
    assert parse([*words, write("a.json", {"steps": 9})]).model.n_layer == 2
    with pytest.raises(ValueError, match="which contradicts --model.n-layer 3"):
        parse([*words, write("a.json", {"model": {"n_layer": 3}})])


floats = st.floats(0.001, 0.999)
configs = st.builds(
    Config,
    data=st.sampled_from([(Path("data/x y"),), (Path("/a:0.5"), Path("b:1/3"))]),
    stage=st.sampled_from([None, Path("b")]),
    seed=st.integers(0, 2**64 - 1),
    steps=st.one_of(st.none(), st.integers(2000, 10**9)),
    skip_windows=st.sampled_from([(), ("1:2", "5:9")]),
    compile=st.sampled_from(["auto", "off"]),
    deterministic=st.booleans(),
    model=st.builds(GPTConfig, n_layer=st.integers(1, 9), tied=st.booleans()),
    optimizer=st.one_of(
        st.builds(AdamWConfig, lr=floats, clip=st.one_of(st.none(), floats)),
        st.builds(MuonConfig, lr=floats, momentum_steps=st.integers(0, 9)),
    ),
    schedule=st.builds(ScheduleConfig, warmup_steps=st.one_of(st.integers(0, 9), floats)),
    eval=st.builds(EvalConfig, tasks=st.sampled_from([(), ("piqa", "val_loss")])),
)


def settings_of(config):
    """The configuration as config.json has it, and the same with what that makes explicit."""
    found = config.as_json(config.network, 3)
    length = config.network.context_length
    return found, replace(config, micro_batch=3, model=config.network, context_length=length)


@given(configs)
@settings(max_examples=25, deadline=None)
def test_a_configuration_written_as_json_is_read_back_equal(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    found, explicit = settings_of(config)
    path.write_text(json.dumps(found))
    assert parse(["--config", str(path)]) == explicit


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_typed_as_flags_is_the_preset(name):
    found, explicit = settings_of(PRESETS[name])
    words = [word for key, value in flat(found) for word in flag_words(key, value)]
    assert parse(words) == explicit


def flat(settings, prefix=""):
    """Each setting with its dotted key; the optimizer's name is a flag of its own."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield (prefix + key).removesuffix(".name"), value
