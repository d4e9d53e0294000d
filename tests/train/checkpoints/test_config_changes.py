"""Resuming with a changed configuration: free, named by a flag, or never."""

import shutil
from dataclasses import fields, replace

import pytest

from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import GOLDEN, NANO, built, lines, nano_config, run_to_end, set_step
from train.checkpoints.config_changes import TABLE, Change, warn_if_not_bitwise_same
from train.checkpoints.recorded_config import recorded_config
from train.config import Config
from train.loop import train
from train.optimizers.sgd import SGDConfig
from train.schedule import ScheduleConfig


@pytest.fixture
def config(tmp_path):
    """The configuration of a run that has started."""
    made = nano_config(tmp_path, save=SaveConfig(4, 0, 9))
    built(made).close()
    return made


def test_every_field_of_the_configuration_is_in_the_table():
    assert {field.name for field in fields(Config)} == {key.split(".")[0] for key in TABLE} - {""}


@pytest.mark.parametrize("changes", [{"micro_batch": 4}, {"save": SaveConfig(2, 0, 3)}])
def test_a_change_that_affects_no_number_is_free_and_logged(config, changes, caplog):
    caplog.set_level("INFO")
    run_to_end(replace(config, **changes))
    assert "changed: " in caplog.text
    assert next(iter(changes)) in caplog.text


def test_what_a_tree_leaves_the_same_is_said_and_what_it_changes_is_warned_of(tmp_path, caplog):
    caplog.set_level("INFO")
    config = nano_config(tmp_path, batch_tokens=256, micro_batch=2, reduction="tree")
    run = built(config)
    run.close()
    assert "a tree of 8 micro-batches: the same bits on 1, 2, 4 or 8 processes of 1 thread" in (
        caplog.text
    )
    settings = run.folder.read_config()["run"]
    warn_if_not_bitwise_same(run.folder, settings)
    warn_if_not_bitwise_same(run.folder, settings | {"world_size": 4})
    assert "processes changes (world_size: 1 -> 4): the same bits" in caplog.text
    assert "undisturbed run" not in caplog.text
    with pytest.raises(ValueError, match=r"reduction: tree -> ddp.*--allow reduction"):
        built(replace(config, reduction="ddp"))
    built(replace(config, reduction="ddp", allow=("reduction",))).close()
    assert "undisturbed run in the last bits: reduction tree -> ddp" in caplog.text
    built(replace(config, reduction="tree", allow=("reduction",), micro_batch=1)).close()
    assert "last bits: micro_batch 2 -> 1, reduction ddp -> tree" in caplog.text


def test_a_tree_of_rounded_gradients_is_refused(tmp_path):
    config = nano_config(tmp_path, reduction="tree", gradient_compression="bfloat16")
    with pytest.raises(ValueError, match="rounds what --reduction tree defines exactly; give "):
        built(config)
    assert not config.out.exists()


@pytest.mark.fault("R4", injected="another rate and clipping")
def test_a_change_that_affects_numbers_must_be_named(config):
    warmer = replace(config, optimizer=replace(config.optimizer, lr=0.02, clip=None))
    message = r"optimizer\.clip: 1\.0 -> None; optimizer\.lr: 0\.01 -> 0\.02\); .*--allow opti"
    with pytest.raises(ValueError, match=message):
        built(warmer)
    with pytest.raises(ValueError, match=r"configuration \(optimizer\.clip: 1\.0 -> None\)"):
        built(replace(warmer, allow=("optimizer.lr",)))
    run_to_end(replace(warmer, allow=("optimizer",)))
    assert max(line.get("train/lr", 0) for line in lines(config.out)) > 0.019


@pytest.mark.fault("R4", injected="another seed, shape or context")
@pytest.mark.parametrize(
    "changes",
    [{"seed": 5}, {"model": replace(NANO, n_layer=2)}, {"context_length": 8}],
)
def test_a_change_that_makes_the_checkpoint_useless_is_never_allowed(config, changes):
    with pytest.raises(ValueError, match=r"can never change .*choose another --out"):
        built(replace(config, **changes, allow=("model", "seed", "context_length")))


@pytest.mark.parametrize("recorded", [True, False])
def test_another_optimizer_cannot_continue_a_run(tmp_path, recorded):
    config = nano_config(tmp_path)
    if recorded:
        built(config).close()
    else:  # older versions had no other optimizer, and did not record its name
        shutil.copytree(GOLDEN / "run", config.out)
    message = (
        r"\(optimizer\.name: adamw -> sgd\); .*belongs to the optimizer it began with\): `trai"
    )
    with pytest.raises(ValueError, match=message):
        built(replace(config, optimizer=SGDConfig(), allow=("optimizer",)))


def test_a_run_of_another_optimizer_than_adamw_is_resumed_and_its_changes_are_named(tmp_path):
    config = nano_config(tmp_path, optimizer=SGDConfig())
    built(config).close()
    built(config).close()
    with pytest.raises(
        ValueError, match=r"configuration \(optimizer\.lr: 0\.5 -> 0\.4\); .*--allow"
    ):
        built(replace(config, optimizer=SGDConfig(lr=0.4)))


def test_a_misspelt_name_is_refused(config):
    with pytest.raises(ValueError, match=r"--allow optimiser is not a setting; .* optimizer\.lr"):
        built(replace(config, allow=("optimiser",)))


def test_another_batch_continues_with_the_next_window(config):
    run_to_end(replace(config, steps=4, allow=("steps",)))
    run_to_end(replace(config, batch_tokens=256, allow=("batch_tokens", "steps")))
    found = [(x["data/first_window"], x["data/windows"]) for x in lines(config.out)[3:6]]
    assert found == [(24, 8), (32, 16), (48, 16)]


def test_the_longest_matching_prefix_decides_and_a_field_without_a_row_must_be_named():
    assert Change("optimizer.lr", 1, 2).rule[0] == "named"
    assert Change("model.n_layer", 1, 2).rule[0] == "never"
    assert Change("eval.every", 1, 2).rule[0] == "free"
    assert Change("invented.later", 1, 2).rule[0] == "named"


def written(config):
    """The files that a refused start must not change."""
    return [(config.out / name).read_bytes() for name in ("config.json", "status.json")]


def test_fewer_steps_than_done_are_refused_and_nothing_is_written(tmp_path):
    config = nano_config(tmp_path, steps=4)
    run_to_end(config)
    before = written(config)
    message = r"step_000004 is at step 4 but steps=3; .*--steps above 4 and --allow steps"
    for _ in range(2):  # twice: the folder must be unlocked again
        with pytest.raises(ValueError, match=message):
            built(replace(config, steps=3, allow=("steps",)))
    assert written(config) == before


def test_larger_steps_whose_epoch_has_ended_are_refused(tmp_path):
    config = nano_config(tmp_path, steps=None)
    run = built(config)
    epoch, run.steps = run.steps, run.steps * 3 // 4
    train(run)
    run.close()
    larger = replace(config, batch_tokens=256, allow=("batch_tokens",))
    message = f"one epoch of batch_tokens=256 is {-(-epoch // 2)} steps; .*--allow batch_tokens st"
    with pytest.raises(ValueError, match=message):
        built(larger)
    onward = replace(larger, steps=epoch, allow=("batch_tokens", "steps"))
    assert run_to_end(onward).step == epoch


def test_a_run_past_its_last_step_ends_at_once(tmp_path, monkeypatch):
    run = built(nano_config(tmp_path))
    set_step(run, run.steps + 1)
    monkeypatch.setattr("train.step.Learner.step", None)
    assert train(run) == "finished"
    run.close()


def test_one_step_and_the_whole_run_are_different_lengths(tmp_path):
    config = nano_config(tmp_path, schedule=ScheduleConfig(warmup_steps=0, hold=1))
    built(config).close()
    with pytest.raises(
        ValueError, match=r"\(schedule\.hold: 1 -> 1\.0\); .* --allow schedule.hold"
    ):
        built(replace(config, schedule=replace(config.schedule, hold=1.0)))
    with pytest.raises(ValueError, match=r"\(schedule\.decay: None -> 0\.3\)"):
        built(replace(config, schedule=replace(config.schedule, decay=0.3)))


@pytest.mark.parametrize(
    ("hold", "decay"), [(0, None), (1, 0), (1.0, None), (1.0, 0), (0.5, 0.5), (0.25, 4)]
)
def test_lengths_of_a_schedule_are_read_back_as_they_were_given(tmp_path, hold, decay):
    config = nano_config(tmp_path, schedule=ScheduleConfig("1-sqrt", 0.0, hold, decay))
    built(config).close()
    found = recorded_config(RunFolder(config.out)).schedule
    assert str(found) == str(config.schedule)
    built(replace(config, schedule=found)).close()
