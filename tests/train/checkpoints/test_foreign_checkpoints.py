"""A checkpoint of another run, or one that lacks something, is never resumed from."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from storage.atomic import read_json, write_json
from storage.checkpoint_folder import step_of, verify_checkpoint, write_manifest
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import GOLDEN, built, lines, losses, nano_config, run_to_end, starts


@pytest.fixture
def config(tmp_path):
    """A finished run of four steps, of which every second was saved."""
    found = nano_config(tmp_path, steps=4, save=SaveConfig(2, 0, keep=9), rehearsal=False)
    run_to_end(found)
    return replace(found, steps=8, allow=("steps",))


def other_run(config, **changes):
    """The checkpoint of step 6 of another run, among those of this one."""
    out = config.out.with_name("other")
    run_to_end(replace(config, out=out, steps=6, allow=(), **changes))
    foreign = config.out / "checkpoints" / "step_000006"
    shutil.copytree(out / "checkpoints" / "step_000006", foreign)
    return foreign


def of_an_older_version(checkpoint, **changes):
    """Take the identity from a checkpoint's state, and change the state otherwise."""
    state = read_json(checkpoint / "state.json") | changes
    del state["run_id"]
    write_json(checkpoint / "state.json", state)
    write_manifest(checkpoint)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.fault("R4", injected="the checkpoint of another run of the same settings", lost="0")
def test_a_run_goes_on_from_its_own_checkpoint_and_leaves_the_other_alone(config, caplog):
    foreign = other_run(config)
    before = content(foreign)
    run = built(config)
    assert run.step == 4
    assert caplog.text.count("step_000006 is not a checkpoint of this run (run_id ") == 1
    assert (config.out / "checkpoints/latest").resolve().name == "step_000004"
    assert content(foreign) == before
    run.close()


@pytest.mark.fault("R4", injected="a checkpoint without identity of another seed", lost="0")
def test_a_checkpoint_of_an_older_version_and_another_seed_is_left_alone(config):
    of_an_older_version(other_run(config, seed=7))
    run_to_end(config)
    assert starts(config.out) == [0, 4]


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"context_length": 8}, {"step": 5}, {"data_fingerprint": "0"}]
)
def test_a_state_that_was_changed_and_sealed_again_is_not_resumed_from(config, change):
    newest = config.out / "checkpoints" / "step_000004"
    write_json(newest / "state.json", read_json(newest / "state.json") | change)
    write_manifest(newest)
    run = built(config)
    assert run.step == 2
    run.close()
    assert newest.is_dir()


@pytest.mark.fault("R4", injected="a foreign checkpoint at a step that is to be saved", lost="0")
def test_a_foreign_checkpoint_at_a_step_that_is_saved_is_moved_and_kept(config):
    foreign = other_run(config, seed=7)
    before = content(foreign)
    run_to_end(config)
    assert content(config.out / "checkpoints" / "step_000006.other_run") == before
    assert read_json(foreign / "state.json")["seed"] == config.seed


def test_pruning_neither_counts_nor_deletes_foreign_checkpoints(config):
    foreign = other_run(config, seed=7)
    later = foreign.with_name("step_000100")
    shutil.copytree(foreign, later)
    run_to_end(replace(config, save=SaveConfig(2, 0, keep=2)))
    kept = sorted(p.name for p in foreign.parent.glob("step_*"))
    names = ["step_000006", "step_000006.other_run", "step_000008", "step_000100"]
    assert kept == names


def test_where_all_checkpoints_are_foreign_the_run_begins_anew(config, caplog):
    foreign = other_run(config, seed=7)
    for step in (2, 4):
        shutil.rmtree(config.out / "checkpoints" / f"step_00000{step}")
    run = built(config)
    assert run.step == 0
    assert "left alone" in caplog.text
    run.close()
    assert foreign.is_dir()


def test_a_copy_of_a_whole_run_folder_goes_on_as_the_run_itself(config):
    copy = replace(config, out=config.out.with_name("fork"))
    shutil.copytree(config.out, copy.out, symlinks=True)
    run_to_end(config)
    run_to_end(copy)
    assert losses(copy.out) == losses(config.out)
    assert starts(copy.out) == [0, 4]
    records = [read_json(c.out / "config.json")["run_id"] for c in (config, copy)]
    assert records[0] == records[1]


def test_an_identity_stays_and_is_in_every_checkpoint(config):
    own = read_json(config.out / "config.json")["run_id"]
    run_to_end(config)
    states = [read_json(p / "state.json") for p in RunFolder(config.out).all_checkpoints()]
    assert {state["run_id"] for state in states} == {own}
    assert read_json(config.out / "config.json")["run_id"] == own


def test_a_run_of_an_older_version_gets_an_identity_at_its_next_start(tmp_path):
    shutil.copytree(GOLDEN.parent / "format_4" / "run", tmp_path / "run")
    run_to_end(nano_config(tmp_path, save=SaveConfig(4, 0, 9)))
    own = read_json(tmp_path / "run" / "config.json")["run_id"]
    assert len(own) == 16
    assert read_json(tmp_path / "run/checkpoints/step_000008/state.json")["run_id"] == own


def without(checkpoint, unwanted):
    """Take tensors from the optimizer's file, and seal the checkpoint again."""
    path = checkpoint / "optimizer.safetensors"
    tensors = load_file(path)
    save_file({name: t for name, t in tensors.items() if not unwanted(name)}, path)
    write_manifest(checkpoint)
    verify_checkpoint(checkpoint)


@pytest.mark.fault("S2", injected="some or all moments missing", lost="interval")
@pytest.mark.parametrize(
    "unwanted",
    [
        lambda name: name.startswith("exp_avg."),
        lambda name: True,
        lambda name: name == "step.wte.weight",
    ],
)
def test_a_checkpoint_without_all_moments_is_not_resumed_from(config, unwanted, caplog):
    newest = config.out / "checkpoints" / "step_000004"
    without(newest, unwanted)
    run = built(config)
    assert run.step == 2
    assert "tensors of the optimizer" in caplog.text
    run.close()
    assert newest.with_name("step_000004.broken").is_dir()


@pytest.mark.fault("S2", injected="a manifest that does not list all files", lost="interval")
@pytest.mark.parametrize("left_out", ["model.safetensors", "optimizer.safetensors", ""])
def test_a_checkpoint_whose_manifest_leaves_a_file_out_is_not_sound(config, left_out, caplog):
    newest = config.out / "checkpoints" / "step_000004"
    manifest = read_json(newest / "MANIFEST.json")
    manifest["files"].pop(left_out) if left_out else manifest["files"].clear()
    write_json(newest / "MANIFEST.json", manifest)
    run = built(config)
    assert run.step == 2
    assert f"does not list {left_out or 'model.json'}" in caplog.text
    run.close()


@pytest.mark.parametrize("text", ["[]", "3", '{"format": 5}', '{"format": "5"}', "null"])
def test_a_state_that_is_sealed_but_no_state_is_set_aside(config, text):
    newest = config.out / "checkpoints" / "step_000004"
    (newest / "state.json").write_text(text)
    write_manifest(newest)
    run = built(config)
    assert run.step == 2
    run.close()


def test_lines_of_the_run_are_its_own_after_a_foreign_checkpoint(config):
    other_run(config, seed=7)
    run_to_end(config)
    assert [line["step"] for line in lines(config.out)] == list(range(9))
    assert step_of((config.out / "checkpoints/latest").resolve()) == 8
