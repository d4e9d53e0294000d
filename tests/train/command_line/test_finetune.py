"""The preset finetune: what follows from checkpoint, data and machine, and what it refuses."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.preparation.prepare import run_preparation
from data_prep.text import TextOptions
from model.config import GPTConfig
from model.shapes import SHAPES
from storage.option_values import AtMost
from storage.script_options import parse_known_options
from tests.data_sets import tiny_data_set
from tests.model.hf_format.models import our_checkpoint, small_tokenizer
from tests.runs import MODERN, alone, built, nano_config, run_to_end
from train.command_line.finetune import sizes_for
from train.command_line.parse import parse
from train.optimizers.adamw import AdamWConfig
from train.preflight.inputs import check_inputs

GPT2 = GPTConfig()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the run of a model of 1 layer, 8 wide, T = 16, and its data."""
    folder = tmp_path_factory.mktemp("first")
    run_to_end(nano_config(folder, steps=3))
    return folder


@pytest.fixture
def words(first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["finetune", "--init", str(first / "run"), "--data", str(first / "data"), "--device=cpu"]


@pytest.mark.parametrize(
    ("tokens", "val_tokens", "context", "batch", "steps", "dropout"),
    [
        (4_613, 535, 512, 512, 27, 0.1),  # The Verdict
        (301_966, 36_059, 1024, 8192, 110, 0.1),  # nanoGPT's Shakespeare
        (10_000_000, 100_000, 1024, 32_768, 915, 0.1),
        (500_000_000, 2_000_000, 1024, 32_768, 15_258, 0.0),  # not once more than there is
        (40, 10, 8, 8, 20, 0.1),
    ],
)
def test_sizes_follow_from_the_data(tokens, val_tokens, context, batch, steps, dropout):
    found = sizes_for(tokens, val_tokens, GPT2, most=32_768)
    assert (found.context_length, found.batch_tokens, found.steps) == (context, batch, steps)
    assert (found.lr, found.dropout) == (5e-5, dropout)


def test_the_rate_follows_from_the_size_and_the_batch_from_the_machine():
    rates = [sizes_for(10**6, 10**4, SHAPES[name]).lr for name in ("gpt2-demo", "gpt2", "gpt2-xl")]
    assert rates == sorted(rates, reverse=True)
    batches = [sizes_for(10**7, 10**5, GPT2, ranks, 32_768).batch_tokens for ranks in (1, 3, 8)]
    assert batches == [32_768, 24_576, 32_768]
    assert sizes_for(10**7, 10**5, GPT2).batch_tokens == 4096


def test_what_the_user_chose_stays_and_the_rest_fits_it():
    found = sizes_for(10**6, 10**4, GPT2, asked={"context_length": 100, "steps": 7})
    assert (found.context_length, found.steps, found.batch_tokens % 100) == (100, 7, 0)
    assert sizes_for(10**6, 10**4, GPT2, asked={"batch_tokens": 2048}).steps == 1464


@pytest.mark.parametrize("val_tokens", [0, 3])
def test_a_text_that_holds_no_window_is_refused_with_a_cure(val_tokens):
    match = rf"too short: 4000 tokens .* and {val_tokens} .*--val-fraction"
    with pytest.raises(ValueError, match=match):
        sizes_for(4000, val_tokens, GPT2)


def test_a_run_starts_from_the_checkpoint_with_one_line_of_reasons(words, first, caplog):
    with caplog.at_level("INFO"):
        config = parse(words)
    assert caplog.text.count("chosen for") == 1
    assert "Muon's rates are for a start from nothing" in caplog.text
    assert (config.out, config.model.n_embd) == (Path("runs/data-finetuned"), 8)
    assert isinstance(config.optimizer, AdamWConfig)
    assert (config.model.dropout, config.stop_when_worse) == (0.1, 3)
    run = built(replace(config, rehearsal=False))
    run.close()
    points = [step for step in range(run.steps) if step % config.eval.every == 0]
    assert 10 <= len(points) <= 11


def test_every_choice_is_a_flag_and_points_of_validation_follow_the_steps(words):
    more = ["--steps", "40", "--optimizer.lr=1e-3", "--model.dropout=0", "--out=runs/x"]
    config = parse([*words, *more, "--stop-when-worse", "5"])
    assert (config.steps, config.eval.every, config.sample.every) == (40, 4, 8)
    assert (config.optimizer.lr, config.model.dropout, config.out) == (1e-3, 0, Path("runs/x"))
    assert config.stop_when_worse == 5
    muon = parse([*words, "--optimizer", "muon"])
    assert type(muon.optimizer).__name__ == "MuonConfig"


@pytest.mark.parametrize("flag", ["--context-length=8", "--model.context-length=8"])
def test_a_shorter_context_is_taken_and_the_batch_fits_it(words, flag):
    config = parse([*words, flag])
    assert (config.network.context_length, config.batch_tokens % 8) == (8, 0)
    built(replace(config, rehearsal=False)).close()


def test_a_context_longer_than_the_positions_is_refused_with_the_longest(words):
    with pytest.raises(ValueError, match="positions for 16 tokens.*--context-length 16 or less"):
        parse([*words, "--context-length=4096"])


def test_a_context_of_rotary_positions_is_cut_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = {name: getattr(MODERN, name) for name in ("norm", "norm_weight", "mlp", "position")}
    our_checkpoint(tmp_path / "modern", **shape, bias=False)
    tiny_data_set(tmp_path / "data", tokenizer=small_tokenizer())
    config = parse(["finetune", "--init=modern", "--data=data", "--context-length=8"])
    assert (config.network.position, config.network.context_length) == ("rope", 8)
    assert isinstance(config.optimizer, AdamWConfig)


def test_without_validation_a_preset_does_not_stop(words):
    config = parse([*words, "--eval.every", "0"])
    run = built(replace(config, rehearsal=False))
    run.close()
    assert (config.stop_when_worse, run.config.stop_when_worse) == (AtMost(3), None)
    with pytest.raises(SystemExit):
        parse([*words, "--eval.every", "0", "--stop-when-worse", "3"])


def test_the_same_command_continues_the_run_by_any_name_of_its_checkpoint(words, first, caplog):
    began = parse([*words, "--steps=20"])
    run_to_end(replace(began, rehearsal=False))
    caplog.clear()
    for name in ("run", "run/checkpoints", "run/checkpoints/latest"):
        config = parse(["finetune", "--init", str(first / name), *words[3:]])
        assert (config.steps, config.out, config.init) == (20, began.out, began.init)
        assert check_inputs(config, alone()).finished
    assert "chosen for" not in caplog.text
    other = parse(["finetune", "--init", str(first / "other"), *words[3:]])
    with pytest.raises(ValueError, match="init can never change"):
        check_inputs(other, alone())


def test_data_of_another_tokenizer_are_refused_with_the_command_that_prepares_them(
    first, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("a story.txt").write_text("It was a dark night. " * 400)
    options = TextOptions(paths=("a story.txt",), out=Path("data/story"), split="tail")
    with options.opened() as source:
        run_preparation(source, options.chosen_out(), options)
    words = ["finetune", "--init", str(first / "run"), "--data", "data/story"]
    with pytest.raises(ValueError, match="another tokenizer") as found:
        parse(words)
    script, *command = shlex.split(str(found.value).partition("python ")[2])
    assert script == "data_prep/text.py"
    again = parse_known_options(TextOptions(), command, prog="text.py", description="")[0]
    with again.opened() as source:
        run_preparation(source, again.chosen_out(), again)
    assert parse([*words[:-1], str(again.out)]).model.n_embd == 8


@pytest.mark.parametrize(
    ("init", "message"),
    [("no/such-run", "there is no checkpoint at"), ("empty", "is an empty folder")],
)
def test_what_is_no_checkpoint_is_refused(first, tmp_path, monkeypatch, init, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("no").mkdir()
    with pytest.raises(ValueError, match=message):
        parse(["finetune", "--init", init, "--data", str(first / "data")])


def test_a_checkpoint_without_a_tokenizer_is_one_sentence(first, tmp_path):
    bare = shutil.copytree(first / "run" / "checkpoints" / "step_000003", tmp_path / "bare")
    shutil.rmtree(bare / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer"):
        parse(["finetune", "--init", str(bare), "--data", str(first / "data")])
