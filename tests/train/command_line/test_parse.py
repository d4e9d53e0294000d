"""The command line of a run: a preset, flags that change it, and errors."""

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.option_values import AtMost
from tests.launching import REPO
from tests.runs import GOLDEN
from train.command_line.parse import parse
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.optimizers.sgd import SGDConfig
from train.presets import PRESETS


def test_without_arguments_it_is_the_reference_run():
    config = parse([])
    assert config == PRESETS["gpt2"] == Config()
    assert (config.batch_tokens, config.network.context_length) == (524_288, 1024)
    assert (config.optimizer.lr, config.schedule.warmup_steps) == (6e-4, 715)


def test_the_first_argument_is_a_preset_and_flags_change_it():
    config = parse(["gpt2-tinystories", "--batch-tokens", "65536", "--eval.every", "7"])
    assert config.optimizer.weight_decay == 0.001
    assert (config.steps, config.batch_tokens, config.eval.every) == (3000, 65536, 7)


def test_the_context_length_is_that_of_the_network():
    assert parse(["--context-length", "256"]).network.context_length == 256
    assert parse(["--model.context-length", "256"]).network.context_length == 256


def test_two_context_lengths_are_refused():
    with pytest.raises(ValueError, match=r"256 and model\.context_length=512 contradict"):
        parse(["--context-length", "256", "--model.context-length", "512"])


def test_the_micro_batch_is_auto_or_a_number():
    assert parse([]).micro_batch == "auto"
    assert parse(["--micro-batch", "32"]).micro_batch == 32
    assert parse(["demo", "--micro-batch", "auto"]).micro_batch == "auto"


BOOLEANS = {
    "deterministic": "no-deterministic",
    "rehearsal": "no-rehearsal",
    "model.bias": "model.no-bias",
    "model.tied": "model.no-tied",
    "guard.box-weights": "guard.no-box-weights",
}


@given(st.fixed_dictionaries(dict.fromkeys(BOOLEANS, st.booleans())))
@settings(max_examples=10)
def test_a_boolean_is_a_flag_and_its_old_spellings_give_the_same_run(values):
    flags = [f"--{name if value else BOOLEANS[name]}" for name, value in values.items()]
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    config = parse(flags)
    assert config == parse(words) == parse([f"--{name}={values[name]}" for name in values])
    found = (config.deterministic, config.rehearsal, config.model.bias, config.model.tied)
    assert (*found, config.guard.box_weights) == tuple(values[name] for name in BOOLEANS)


def test_a_preset_is_also_found_behind_the_flags():
    assert parse(["--seed", "3", "demo"]) == parse(["demo", "--seed", "3"])
    mixture = ["--data", "demo:1", "b:2"]
    assert parse([*mixture, "demo", "--seed", "3"]) == parse(["demo", *mixture, "--seed", "3"])
    assert parse(["--data", "demo", "demo"]) == parse(["demo", "--data", "demo"])
    with pytest.raises(ValueError, match=r"the preset comes first: train/main\.py demo"):
        parse(["--stage", "demo", "demo"])


def test_auto_validates_on_the_number_of_the_preset():
    number = parse(["demo", "--eval.val-tokens", "auto"]).eval.val_tokens
    assert (number, type(number)) == (16_384, AtMost)
    assert type(parse(["demo", "--eval.val-tokens", "16384"]).eval.val_tokens) is int
    assert type(parse(["gpt2-demo"]).schedule.warmup_steps) is AtMost


def test_without_a_preset_the_run_in_the_folder_gives_the_defaults(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    out = ["--out", str(tmp_path / "run")]
    found = parse([*out, "--steps=20"])
    assert (found.steps, found.model.n_embd, found.optimizer.lr) == (20, 8, 0.01)
    assert (found.out, found.micro_batch, found.allow) == (tmp_path / "run", "auto", ())
    assert parse(["gpt2", *out]).model.n_embd == 768
    assert parse(["--out", str(tmp_path / "new")]).model.n_embd == 768


@pytest.mark.parametrize("text", ["5", "{", '{"config": 3}', '{"config": {"steps": "many"}}'])
def test_a_damaged_record_of_a_run_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json .*; put back a copy .* --init .*/latest$"):
        parse(["--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"steps": "many"}, "steps is 'many'"),
        ({"model": 3}, "3 is no group of settings"),
        ({"later": 1}, "a setting that this version does not know: later; if a newer version"),
        ({"optimizer": {"name": "zz"}}, "optimizer 'zz' is not one of adamw"),
        ({"optimizer": {"name": []}}, r"optimizer \[\] is not one of adamw"),
        ({"optimizer": 5}, "5 is no group of settings"),
    ],
)
def test_a_setting_that_no_run_has_is_named(tmp_path, change, reason):
    run = shutil.copytree(GOLDEN / "run", tmp_path / "run", symlinks=True)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"config": record["config"] | change}))
    with pytest.raises(ValueError, match=rf"{reason}.* put back a copy .*--init {run}/check"):
        parse(["--out", str(run)])


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="preset gtp2 is not known; choose one of gpt2, gpt2-medi"):
        parse(["gtp2"])


def test_a_misspelt_flag_exits_with_code_2_and_a_suggestion(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--batch-token", "5"])
    assert ended.value.code == 2
    assert "--batch-tokens" in capsys.readouterr().err


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        parse(["--help-all"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Tokens of one optimizer step, over all ranks" in text
    assert "Steps between validations" in text


@pytest.mark.parametrize("choice", [["--optimizer", "sgd"], ["--optimizer=sgd"]])
def test_an_optimizer_is_chosen_by_name_with_its_own_defaults(choice):
    assert parse(choice).optimizer == SGDConfig()
    config = parse(["demo", "--optimizer.momentum", "0.9", *choice, "--steps", "30"])
    assert config.optimizer == SGDConfig(momentum=0.9)
    assert (config.steps, config.batch_tokens) == (30, PRESETS["demo"].batch_tokens)


def test_without_a_name_and_by_its_name_the_optimizer_is_that_of_the_preset():
    wanted = AdamWConfig(lr=1e-3, beta1=0.8)
    assert parse(["gpt2-demo", "--optimizer.beta1", "0.8"]).optimizer == wanted
    assert parse(["gpt2-demo", "--optimizer=adamw", "--optimizer.beta1", "0.8"]).optimizer == wanted


@pytest.mark.parametrize("choice", [[], ["--optimizer", "sgd"]])
def test_with_several_optimizers_the_learning_rate_is_a_flag_and_no_sub_command(choice, capsys):
    with pytest.raises(SystemExit):
        parse([*choice, "--help-all"])
    text = capsys.readouterr().out
    assert "--optimizer.lr FLOAT" in text
    assert ("--optimizer.momentum" in text) == bool(choice)
    assert "optimizer:" not in text
    assert "one of adamw, muon, sgd." in " ".join(text.split())


def test_a_setting_of_another_optimizer_is_an_unknown_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--optimizer", "sgd", "--optimizer.beta1", "0.9"])
    assert (ended.value.code, "--optimizer.beta1" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("words", [["--optimizer", "lamb"], ["--optimizer"], ["--optimizer=", "x"]])
def test_an_unknown_optimizer_is_refused_with_the_known_ones(words):
    with pytest.raises(ValueError, match="^optimizer=.* is not known; .* one of adamw, muon, sgd$"):
        parse(words)


def as_words(settings, prefix="--"):
    """Settings of a config.json as the flags that give them."""
    for key, value in settings.items():
        flag = f"{prefix}{key.replace('_', '-')}"
        if isinstance(value, dict):
            yield from as_words(value, f"{flag}.")
        elif isinstance(value, bool):
            yield flag if value else f"{prefix}no-{key.replace('_', '-')}"
        elif value != []:
            yield flag
            yield from map(str, value if isinstance(value, list) else [value])


def test_every_flag_of_older_versions_gives_what_it_gave():
    settings = json.loads((REPO / "tests/golden/format_5/run/config.json").read_text())["config"]
    assert settings["optimizer"].pop("name") == "adamw"
    words = list(as_words(settings))
    assert len([word for word in words if word.startswith("--")]) == 61
    found = parse(["gpt2", *words])
    now = found.as_json(found.network, 2)
    assert now["optimizer"].pop("name") == "adamw"
    for key, value in settings.items():
        kept = {k: now[key][k] for k in value} if isinstance(value, dict) else now[key]
        assert kept == value, key


def test_settings_of_muon_are_flags_and_each_optimizer_has_defaults_of_its_own():
    muon = parse(["gpt2", "--optimizer", "muon", "--optimizer.momentum", "0.9"]).optimizer
    assert muon == MuonConfig(momentum=0.9, embedding_lr=0.03)  # the embedding is the head too
    assert parse(["modern", "--optimizer", "adamw"]).optimizer == AdamWConfig()
    assert parse(["modern"]).optimizer == MuonConfig()
    values = {f.name: 5 if f.name == "momentum_steps" else 0.5 for f in fields(MuonConfig)}
    words = [f"--optimizer.{name.replace('_', '-')}={value}" for name, value in values.items()]
    assert asdict(parse(["modern", *words]).optimizer) == values


def test_sources_of_a_mixture_after_several_flags_are_refused_and_a_script_may_append_data():
    with pytest.raises(ValueError, match=r"2 times; .* after one: --data a:0\.7 b:0\.3$"):
        parse(["gpt2", "--data", "a:0.7", "--data", "b:0.3"])
    assert parse(["gpt2", "--data", "a", "--data", "b:1", "c:2"]).data == (Path("b:1"), Path("c:2"))
