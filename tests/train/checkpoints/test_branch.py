"""A run that continues another run's checkpoint equals the run that was never divided."""

import logging
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from storage.atomic import read_json
from storage.checkpoint_folder import STATE_FILE
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import (
    NANO,
    alone,
    built,
    deterministic,
    final_bytes,
    lines,
    nano_config,
    run_to_end,
)
from train.checkpoints.branch import PARENT, run_of_branch
from train.command_line.parse import parse
from train.doctor import check_dry_run
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.preflight.inputs import check_inputs
from train.schedule import ScheduleConfig

HELD = ScheduleConfig("linear", warmup_steps=2, hold=8, min_lr_ratio=0.0)  # decays from step 10 on
ALLOW = ("steps", "schedule.hold")


def held_config(folder, **changes):
    """A run of 20 steps that keeps the checkpoint of step 10 and the last one."""
    save = SaveConfig(every=4, every_minutes=0, keep=1, keep_best=0)
    return nano_config(folder, **{"steps": 20, "schedule": HELD, "save": save} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The configuration of a finished run with an optimizer; each is trained once."""

    @cache
    def run_with(optimizer):
        folder = tmp_path_factory.mktemp("finished")
        config = held_config(folder, optimizer=optimizer, model=replace(NANO, tied=False))
        run_to_end(config)
        return config

    return run_with


@pytest.fixture
def parent(request, finished, tmp_path):
    """The configuration of a copy of a finished run."""
    config = finished(getattr(request, "param", MuonConfig()))
    shutil.copytree(config.out.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
    return replace(config, data=(tmp_path / "data",), out=tmp_path / "run")


def branch_of(config, name="branch", step=10, **changes):
    """A new run, beside the other, that continues its checkpoint."""
    checkpoint = config.out / "checkpoints" / f"step_{step:06d}"
    return replace(config, out=config.out.with_name(name), branch=checkpoint, **changes)


def numbers(out):
    """What each step computed."""
    return [deterministic(line) for line in lines(out)]


def kept(out):
    return sorted(p.name for p in (out / "checkpoints").glob("step_*"))


def test_the_checkpoint_at_the_end_of_the_hold_is_saved_and_kept(parent):
    assert kept(parent.out) == ["step_000010", "step_000020"]


@pytest.mark.parametrize("parent", [AdamWConfig(lr=1e-2), MuonConfig()], indirect=True)
def test_a_branch_with_the_same_settings_equals_the_run_itself(parent):
    branch = branch_of(parent)
    run_to_end(branch)
    assert numbers(branch.out) == numbers(parent.out)
    assert final_bytes(branch.out) == final_bytes(parent.out)


@pytest.mark.parametrize("parent", [AdamWConfig(lr=1e-2), MuonConfig()], indirect=True)
def test_a_longer_branch_equals_a_run_that_was_longer_from_the_start(parent, tmp_path):
    longer = replace(HELD, hold=20)
    branch = branch_of(parent, steps=32, schedule=longer, allow=ALLOW)
    run_to_end(branch)
    whole = replace(parent, out=tmp_path / "whole", steps=32, schedule=longer)
    run_to_end(whole)
    assert numbers(branch.out) == numbers(whole.out)
    assert final_bytes(branch.out) == final_bytes(whole.out)
    assert kept(branch.out) == kept(whole.out) == ["step_000022", "step_000032"]


def test_a_branch_has_an_identity_of_its_own_and_names_its_parent(parent):
    branch = branch_of(parent)
    built(branch).close()
    own, other = (read_json(config.out / "config.json") for config in (branch, parent))
    assert own["run_id"] != other["run_id"]
    assert own[PARENT] == {"path": str(branch.branch), "run_id": other["run_id"], "step": 10}
    copy = branch.out / "checkpoints" / "step_000010"
    assert read_json(copy / STATE_FILE)["run_id"] == own["run_id"]
    run_to_end(branch)
    assert read_json(branch.out / "config.json")[PARENT] == own[PARENT]


def test_a_branch_killed_before_its_first_checkpoint_begins_again_where_it_branched(parent):
    branch = branch_of(parent)
    built(branch).close()
    shutil.rmtree(branch.out / "checkpoints")
    run_to_end(branch)
    assert final_bytes(branch.out) == final_bytes(parent.out)


def test_a_branch_resumes_from_its_own_checkpoints_without_its_parent(parent):
    branch = branch_of(parent, save=replace(parent.save, keep=9))
    run_to_end(branch)
    expected = final_bytes(branch.out)
    shutil.rmtree(parent.out)
    shutil.rmtree(branch.out / "checkpoints" / "step_000020")
    run_to_end(branch)
    assert final_bytes(branch.out) == expected


def test_a_branch_of_a_branch_continues(parent):
    first = branch_of(parent, save=replace(parent.save, keep=9))
    run_to_end(first)
    second = branch_of(first, "second", step=12)
    run_to_end(second)
    assert numbers(second.out) == numbers(parent.out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 32}, r"^--branch holds a run .*\(steps: 20 -> 32\); .* --allow steps"),
        ({"seed": 3}, r"seed can never change"),
        ({"optimizer": AdamWConfig(), "allow": ("optimizer",)}, "optimizer.name can never change"),
        ({"steps": 10, "allow": ("steps",)}, "is at step 10 but steps=10; give a larger --steps"),
        (
            {"branch": "step_10"},
            "step_10 is no checkpoint in the folder of a run; give one such as",
        ),
        ({"branch": "step_000011"}, "there is no checkpoint at .*step_000011"),
        ({"branch": Path("nowhere")}, "nowhere is no checkpoint in the folder of a run; give"),
    ],
)
def test_a_branch_that_is_not_the_same_run_is_refused_before_anything_is_written(
    parent, changes, message
):
    if isinstance(changes.get("branch"), str):
        changes = {"branch": parent.out / "checkpoints" / changes["branch"]}
    branch = replace(branch_of(parent), **changes)
    with pytest.raises(ValueError, match=message):
        built(branch)
    assert not branch.out.exists()


def test_a_damaged_checkpoint_begins_no_branch(parent):
    branch = branch_of(parent)
    file = branch.branch / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"optimizer\.safetensors differs from its digest"):
        built(branch)
    assert not branch.out.exists()


def test_a_changed_branch_is_another_run(parent):
    branch = branch_of(parent)
    built(branch).close()
    with pytest.raises(ValueError, match="branch can never change .it only says where"):
        built(replace(branch, branch=None))


def test_without_a_preset_the_settings_of_the_other_run_are_the_defaults(parent, tmp_path):
    words = ["--branch", str(parent.out), "--out", str(tmp_path / "new"), "--steps", "40"]
    found = parse(words)
    assert (found.model.n_embd, found.optimizer) == (parent.model.n_embd, parent.optimizer)
    assert (found.out, found.branch, found.steps) == (tmp_path / "new", parent.out, 40)


def test_an_extension_that_jumps_names_the_checkpoint_from_which_none_is_needed(parent, caplog):
    longer = replace(parent, steps=32, schedule=replace(HELD, hold=20), allow=ALLOW)
    run_to_end(longer)
    peak = parent.optimizer.lr
    assert f"and is {peak:.3g} at step 20, then stays there until step 22, then falls to 0 by" in (
        caplog.text
    )
    command = (
        f"--branch {parent.out}/checkpoints/step_000010 --out NEW --schedule.hold 20 "
        "--steps 32 --allow schedule.hold steps"
    )
    assert command in caplog.text
    assert "step_000010" in kept(parent.out)  # it is still there after the extension
    parsed = parse(command.replace("NEW", str(parent.out.with_name("new"))).split())
    run_to_end(parsed)
    rates = [line["train/lr"] for line in lines(parsed.out) if "train/lr" in line]
    assert rates[2:23] == [peak] * 21


def test_a_run_that_ends_in_its_hold_is_extended_in_place_without_a_jump(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    hold = ScheduleConfig("linear", warmup_steps=0, hold=1.0, min_lr_ratio=0.0)
    config = held_config(tmp_path, steps=10, schedule=hold)
    run_to_end(config)
    longer = replace(config, steps=20, schedule=replace(hold, hold=10), allow=ALLOW)
    run_to_end(longer)
    text = "was 0.01 at step 9 and is 0.01 at step 10, then falls to 0 by step 20, since schedule"
    assert text in caplog.text
    assert "--branch" not in caplog.text
    whole = replace(longer, out=tmp_path / "whole", allow=())
    run_to_end(whole)
    assert numbers(whole.out) == numbers(longer.out)
    assert RunFolder(longer.out).is_finished()


def test_the_doctor_of_a_branch_copies_no_checkpoint_and_leaves_nothing_behind(parent):
    branch, ranks = branch_of(parent), alone()
    found = check_dry_run(branch, ranks, check_inputs(branch, ranks))
    assert {check.verdict for check in found} == {"ok"}
    assert not branch.out.exists()


def test_a_kill_while_the_checkpoint_is_copied_leaves_nothing_that_a_start_cannot_repeat(
    parent, monkeypatch
):
    branch = branch_of(parent)
    written = []

    def killed(folder, record):
        written.append(record["parent"]["step"])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            built(branch)
    assert (written, kept(branch.out)) == ([10], [])
    run_to_end(branch)
    assert final_bytes(branch.out) == final_bytes(parent.out)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/latest"])
def test_a_run_or_its_latest_checkpoint_may_be_named(parent, place):
    folder, checkpoint = run_of_branch(parent.out / place)
    assert (folder.path, checkpoint.name) == (parent.out, "step_000020")
