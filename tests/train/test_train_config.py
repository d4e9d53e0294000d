"""The configuration: presets, the batch plan, and values refused with their cure."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import GPTConfig
from train.batch_plan import plan_batch, share_of
from train.command_line import parse
from train.config import Config, EvalConfig, SampleConfig, SaveConfig
from train.presets import PRESETS
from train.schedule import ScheduleConfig


def test_no_word_is_the_reference_run():
    config = parse([])
    assert config == PRESETS["gpt2"] == Config()
    assert (config.batch_tokens, config.network.context_length) == (524_288, 1024)
    assert (config.optimizer.lr, config.schedule.warmup_steps) == (6e-4, 715)


def test_the_first_word_picks_a_preset_and_flags_change_it():
    config = parse(["gpt2-tinystories", "--batch-tokens", "65536", "--eval.every", "7"])
    assert config.optimizer.weight_decay == 0.001
    assert (config.steps, config.batch_tokens, config.eval.every) == (3000, 65536, 7)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_divides_on_1_2_4_and_8_ranks_with_some_micro_batch(name):
    for world_size in (1, 2, 4, 8):
        assert plan_batch(PRESETS[name], world_size, 1).grad_accum_steps >= 1


def test_the_context_length_shapes_the_network():
    assert parse(["--context-length", "256"]).network.context_length == 256
    assert parse(["--model.context-length", "256"]).network.context_length == 256


def test_two_context_lengths_are_refused():
    with pytest.raises(ValueError, match=r"256 and model\.context_length=512 say two things; give"):
        parse(["--context-length", "256", "--model.context-length", "512"])


def test_the_micro_batch_is_auto_or_a_number():
    assert parse([]).micro_batch == "auto"
    assert parse(["--micro-batch", "32"]).micro_batch == 32
    assert parse(["demo", "--micro-batch", "auto"]).micro_batch == "auto"


def test_a_preset_that_is_not_known_lists_those_that_are():
    with pytest.raises(ValueError, match="preset gtp2 is not known; choose one of gpt2, gpt2-medi"):
        parse(["gtp2"])


def test_a_misspelt_flag_ends_with_code_2_and_a_guess(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--batch-token", "5"])
    assert ended.value.code == 2
    assert "--batch-tokens" in capsys.readouterr().err


@pytest.mark.fault("R3", injected="a batch that does not divide")
def test_a_batch_that_does_not_divide_proposes_ones_that_do():
    with pytest.raises(ValueError, match=r"16 x 1024 x 6 .* = 98304; try .* 491520 or 589824"):
        plan_batch(Config(), 6, 16)


def test_without_a_micro_batch_the_proposed_batches_divide_well_too():
    with pytest.raises(ValueError, match=r"of 1024 x 6 .* = 6144; try .* 491520 or 589824$"):
        share_of(Config(), 6)
    with pytest.raises(ValueError, match=r"try --batch-tokens 1024$"):
        share_of(Config(batch_tokens=1000), 1)


def test_a_batch_smaller_than_one_round_proposes_a_micro_batch_too():
    with pytest.raises(ValueError, match="try --batch-tokens 65536, or --micro-batch auto$"):
        plan_batch(Config(batch_tokens=16384), 1, 64)


@given(
    micro_batch=st.integers(1, 9),
    world_size=st.integers(1, 9),
    accumulate=st.integers(1, 9),
    T=st.integers(1, 64),
)
def test_a_plan_spends_exactly_the_batch(micro_batch, world_size, accumulate, T):
    tokens = micro_batch * world_size * accumulate * T
    config = Config(batch_tokens=tokens, context_length=T)
    assert share_of(config, world_size) == micro_batch * accumulate
    plan = plan_batch(config, world_size, micro_batch)
    assert (plan.tokens, plan.grad_accum_steps) == (tokens, accumulate)
    assert plan.windows * T == tokens


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Config(steps=0), "steps=0 is out of range; use 1 or more"),
        (lambda: Config(batch_tokens=-5), "batch_tokens=-5 is out of range"),
        (lambda: Config(seed=-1), "seed=-1 is out of range; use 0 or more"),
        (lambda: Config(steps=100), "warmup_steps=715 is not less than steps=100; try .* 10$"),
        (lambda: EvalConfig(tasks=("helaswag",)), "helaswag.*hellaswag"),
        (lambda: EvalConfig(every=-1), r"eval\.every=-1"),
        (lambda: SampleConfig(temperature=float("nan")), r"sample\.temperature=nan"),
        (lambda: SaveConfig(keep=0), r"save\.keep=0 is out of range; use 1 or more"),
        (lambda: ScheduleConfig(warmup_steps=-1), r"schedule\.warmup_steps=-1"),
    ],
)
def test_impossible_values_are_refused_with_the_rule(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Tokens of one optimizer step over all ranks" in text
    assert "Steps between validations" in text


def test_the_record_of_a_run_has_its_evaluation_files_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.jsonl").symlink_to("blob")  # as in the Hub's cache, where only links have a kind
    own = EvalConfig(hellaswag_file=Path("h.jsonl"), task_file=("piqa=p.jsonl",))
    found = Config(eval=own).as_json(GPTConfig(), 1)["eval"]
    assert found["hellaswag_file"] == str(tmp_path / "h.jsonl")
    assert found["task_file"] == [f"piqa={tmp_path / 'p.jsonl'}"]
