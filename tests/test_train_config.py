"""The configuration: presets, the batch plan, and values refused with their cure."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import Config, EvalConfig, SampleConfig, SaveConfig, plan_batch
from train.main import parse
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
        config = replace(PRESETS[name], micro_batch=1)
        assert plan_batch(config, world_size, on_cuda=False).grad_accum_steps >= 1


def test_the_context_length_shapes_the_network():
    assert parse(["--context-length", "256"]).network.context_length == 256


def test_a_preset_that_is_not_known_lists_those_that_are():
    with pytest.raises(ValueError, match="preset gtp2 is not known; choose one of gpt2, gpt2-medi"):
        parse(["gtp2"])


def test_a_misspelt_flag_ends_with_code_2_and_a_guess(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--batch-token", "5"])
    assert ended.value.code == 2
    assert "--batch-tokens" in capsys.readouterr().err


def test_a_batch_that_does_not_divide_proposes_ones_that_do():
    config = Config(micro_batch=16)
    with pytest.raises(ValueError, match=r"16 x 1024 x 6 .* = 98304; try .* 491520 or 589824"):
        plan_batch(config, 6, on_cuda=True)


def test_a_batch_smaller_than_one_round_proposes_a_micro_batch_too():
    config = Config(batch_tokens=16384)
    with pytest.raises(ValueError, match="try --batch-tokens 65536, or --micro-batch 16$"):
        plan_batch(config, 1, on_cuda=True)


@given(
    micro_batch=st.integers(1, 9),
    world_size=st.integers(1, 9),
    accumulate=st.integers(1, 9),
    T=st.integers(1, 64),
)
def test_a_plan_spends_exactly_the_batch(micro_batch, world_size, accumulate, T):
    tokens = micro_batch * world_size * accumulate * T
    config = Config(batch_tokens=tokens, micro_batch=micro_batch, context_length=T)
    plan = plan_batch(config, world_size, on_cuda=False)
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
