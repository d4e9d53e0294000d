"""Little text and short runs: the numbers of a preset follow, those of a user are errors."""

import logging
from dataclasses import replace

import pytest

from eval.training_config import EvalConfig
from storage.option_values import AtMost
from tests.data_sets import tiny_data_set
from tests.runs import built, lines, nano_config, run_to_end, tiny_config
from train.config import Config
from train.preflight.open_sizes import with_sizes
from train.presets import PRESETS
from train.schedule import ScheduleConfig

VALIDATED = EvalConfig(every=4, val_tokens=AtMost(10**6), tasks_every=0, tasks=())


def refused(config):
    with pytest.raises(ValueError, match=r"\w") as found:
        built(config)
    assert not config.out.exists()
    return str(found.value)


def test_a_preset_validates_on_all_there_is_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    config = nano_config(tmp_path, eval=VALIDATED)
    run = run_to_end(config)
    whole = (run.data.val_tokens - 1) // 16 * 16
    assert run.config.eval.val_tokens == whole
    assert f"validation: {whole} tokens, all whole windows of" in caplog.text
    exact = run_to_end(
        replace(config, out=tmp_path / "b", eval=replace(VALIDATED, val_tokens=whole))
    )
    assert run.results["metrics"] == exact.results["metrics"]


def test_a_user_who_gives_too_many_validation_tokens_is_told_how_many_there_are(tmp_path):
    message = refused(nano_config(tmp_path, eval=replace(VALIDATED, val_tokens=10**6)))
    assert "give --eval.val-tokens 688 or less" in message


def test_data_without_validation_train_without_it(tmp_path):
    config = nano_config(tmp_path, eval=VALIDATED, context_length=1024, batch_tokens=2048)
    assert refused(config).endswith("or train without validation: --eval.every 0")
    built(replace(config, eval=replace(VALIDATED, every=0))).close()


def test_data_without_any_validation_document_train_without_validation(tmp_path):
    data = tiny_data_set(tmp_path / "none", documents=30, val_fraction=0)
    config = tiny_config(data.folder, tmp_path / "run", eval=VALIDATED)
    assert refused(config).endswith("or train without validation: --eval.every 0")
    built(replace(config, eval=replace(VALIDATED, every=0))).close()


def test_the_warm_up_of_a_preset_is_shortened_and_that_of_a_user_is_an_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own = nano_config(tmp_path, steps=20, schedule=ScheduleConfig(warmup_steps=AtMost(20)))
    run = run_to_end(own)
    assert run.config.schedule.warmup_steps == 2
    assert "warm-up: 2 of 20 steps, since the preset's 20 do not fit" in caplog.text
    rates = [line["train/lr"] for line in lines(own.out) if "train/lr" in line]
    assert rates[:2] == pytest.approx([0.005, 0.01])
    fits = nano_config(tmp_path, steps=20, schedule=ScheduleConfig(warmup_steps=AtMost(19)))
    assert fits.warmup_steps_for(20) == 19


def test_a_warm_up_longer_than_an_epoch_proposes_a_smaller_batch(tmp_path):
    config = nano_config(tmp_path, steps=None, schedule=ScheduleConfig(warmup_steps=100))
    assert "try a smaller --batch-tokens, near" in refused(config)


def test_a_run_that_continues_keeps_what_was_chosen(tmp_path):
    config = nano_config(
        tmp_path, steps=20, eval=VALIDATED, schedule=ScheduleConfig(warmup_steps=AtMost(20))
    )
    before = run_to_end(config).config
    longer = run_to_end(replace(config, steps=30, allow=("steps",))).config
    assert longer.eval.val_tokens == before.eval.val_tokens
    assert longer.schedule.warmup_steps == before.schedule.warmup_steps == 2


def test_a_run_that_is_extended_says_both_learning_rates(tmp_path, caplog):
    run_to_end(nano_config(tmp_path, steps=8))
    longer = nano_config(tmp_path, steps=16, allow=("steps",))
    built(longer).close()
    assert "the learning rate was 0.0016 at step 7 and is 0.0065 at step 8" in caplog.text
    assert "since steps changed" in caplog.text
    caplog.clear()
    built(replace(longer, allow=("steps",))).close()
    assert "the learning rate was" not in caplog.text


def test_an_epoch_of_few_steps_is_warned_of_with_a_smaller_batch(tmp_path, caplog):
    config = nano_config(tmp_path, steps=None, batch_tokens=4096, schedule=ScheduleConfig())
    built(config).close()
    assert "is only 2 steps of batch_tokens=4096; --batch-tokens 80 would make it" in caplog.text


def test_a_short_run_has_more_validations_than_a_preset_asks_for_and_a_users_number_stands(
    tmp_path,
):
    preset = EvalConfig(every=AtMost(250), val_tokens=64, tasks_every=0, tasks=())
    run = built(nano_config(tmp_path, steps=20, eval=preset))
    assert (run.config.eval.every, run.config.sample.every) == (4, 0)
    run.close()
    users = replace(run.config, out=tmp_path / "b", eval=replace(preset, every=250))
    run = built(users)
    assert run.config.eval.every == 250
    run.close()


def test_a_long_run_has_the_presets_number_and_a_run_of_two_steps_has_its_own():
    config = with_sizes(Config(), 100, 0, 20_000)
    assert (config.eval.every, config.sample.every) == (250, 500)
    assert with_sizes(Config(), 100, 0, 2).eval.every == 1
    demo = with_sizes(PRESETS["demo"], 100, 0, 50)
    assert (demo.eval.every, demo.sample.every) == (10, 10)
