"""A damaged run folder, or files of the wrong kind in it: what only reports stops no run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storage.atomic import write_json
from storage.checkpoint_folder import write_manifest
from storage.records.run_records import checked_config, checked_status
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.damage import JSON_FILE, call, wrong_fields
from tests.runs import built, final_bytes, flags, forget_after, lines, nano_config, run_to_end
from train.main import main


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with checkpoints of all even ones."""
    config = nano_config(tmp_path_factory.mktemp("finished"), save=SaveConfig(2, 0, 9))
    run_to_end(config)
    return config


@pytest.fixture
def config(finished, tmp_path):
    """A copy of it, left as a kill after step 6 leaves it."""
    shutil.copytree(finished.out, tmp_path / "run", symlinks=True)
    shutil.copytree(finished.data[0], tmp_path / "data")
    forget_after(tmp_path / "run", 6)
    (tmp_path / "run" / "checkpoints" / "latest").unlink()
    return nano_config(tmp_path, save=SaveConfig(2, 0, 9))


@pytest.mark.fault("S2", injected="status.json damaged in any way", lost="0")
@pytest.mark.parametrize("damage", JSON_FILE, ids=lambda damage: damage.name)
def test_a_damaged_status_is_set_aside_and_the_run_continues(config, damage, caplog):
    status = config.out / "status.json"
    damage.do(status)
    damaged = checked_status(status) is None
    run = built(config)
    run.close()
    assert run.step == 6
    assert RunFolder(config.out).read_status()["state"] == "running"
    set_aside = (config.out / "status.json.damaged").exists()
    assert set_aside == (damaged and damage.name != "missing")
    assert ("it is now status.json.damaged" in caplog.text) == set_aside


def test_every_field_of_a_status_has_its_type(tmp_path):
    content = {"state": "running", "step": 3, "reason": "", "attempts": 1, "started_at_step": 0}
    path = tmp_path / "status.json"
    write_json(path, content)
    assert checked_status(path) == content
    for damage in wrong_fields(path, each=12):
        write_json(path, content)
        damage.do(path)
        found = checked_status(path) or {"state": "running", "step": 0}
        assert found["state"] in ("running", "preempted", "finished", "failed")
        counts = [found.get(key) for key in ("step", "attempts", "started_at_step")]
        assert all(count is None or type(count) is int for count in counts), damage.name


@pytest.mark.fault("S2", injected="config.json damaged in any way")
def test_a_damaged_configuration_is_one_sentence_with_a_cure(config):
    path = config.out / "config.json"
    whole = path.read_bytes()
    for damage in [*JSON_FILE, *wrong_fields(path, depth=2)]:
        if damage.name == "missing":
            continue
        damage.do(path)
        found = ""
        try:
            checked_config(path)  # a field that it need not have may be of any value
        except (ValueError, OSError) as error:
            found = str(error)
        assert found == "" or ("config.json" in found and len(found) < 600)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
    path.write_text("5")
    ended = call(main, flags(config)[1:], config.out.parent)
    assert (ended.code, ended.uncaught) == (2, "")
    assert ended.err.count("\n") == 1
    assert "config.json" in ended.err


@pytest.mark.fault("S6", injected="a folder or a file in the place of the other", lost="0")
@pytest.mark.parametrize(
    "name",
    ["status.json", "metrics.jsonl", "metrics.discarded.jsonl", "starts.jsonl", "loss.png"],
)
def test_a_folder_in_the_place_of_a_record_stops_nothing(config, finished, name):
    (config.out / name).unlink(missing_ok=True)
    (config.out / name).mkdir()
    ended = call(main, flags(config)[1:], config.out.parent)
    assert (ended.code, ended.uncaught) == (0, "")
    assert name in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert RunFolder(config.out).read_status()["state"] == "finished"
    assert final_bytes(config.out) == final_bytes(finished.out)
    assert lines(config.out)[-1]["step"] == 8


@pytest.mark.parametrize("name", ["tensorboard", "samples"])
def test_a_file_in_the_place_of_a_folder_of_reports_stops_nothing(config, name):
    shutil.rmtree(config.out / name, ignore_errors=True)
    (config.out / name).write_text("mine")
    run_to_end(config)
    assert (config.out / f"{name}.damaged").read_text() == "mine"


@pytest.mark.fault("S6", injected="checkpoints that cannot be written, found at the start")
@pytest.mark.parametrize("kind", ["a file", "a link to nothing", "not writable"])
def test_checkpoints_that_cannot_be_written_are_found_at_the_start(config, kind, monkeypatch):
    checkpoints = config.out / "checkpoints"
    if kind == "not writable":  # for root every folder is
        monkeypatch.setattr("pathlib.Path.mkdir", refused)
    else:
        shutil.rmtree(checkpoints)
        checkpoints.write_text("") if kind == "a file" else checkpoints.symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"no checkpoint can be written to .*checkpoints \("):
        built(config)
    assert not (config.out / "checkpoints" / ".probe").exists()


def refused(path, *words, make=Path.mkdir, **more):
    if path.name.startswith(".probe"):
        raise PermissionError(13, "Permission denied", str(path))
    make(path, *words, **more)


@pytest.mark.fault("S7", injected="a full disk under status.json and starts.jsonl", lost="0")
def test_a_disk_that_takes_no_status_and_no_start_stops_nothing(config, monkeypatch, caplog):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.run_folder.append_line", full)
    run = built(config)
    monkeypatch.setattr("storage.run_folder.write_json", full)
    assert not run.folder.write_status("running", 6)
    run.close()
    assert "status.json cannot be written ([Errno 28] No space left on device)" in caplog.text
    assert "starts.jsonl cannot be written" in caplog.text


def test_lines_of_the_checkpoint_with_values_that_are_not_finite_are_written_again(config):
    state = config.out / "checkpoints" / "step_000006" / "state.json"
    content = json.loads(state.read_text())
    content["lines"][-1] |= {"train/loss": None, "train/grad_norm": None, "train/skipped": 1}
    state.write_text(json.dumps(content))
    write_manifest(state.parent)
    (config.out / "metrics.jsonl").unlink()
    built(config).close()
    last = lines(config.out)[-1]
    assert (last["step"], last["train/loss"]) == (5, None)


@pytest.mark.parametrize("text", ["{", '{"config": 3}'])
def test_the_weights_of_a_run_whose_configuration_is_damaged_begin_another(
    finished, tmp_path, text
):
    run = shutil.copytree(finished.out, tmp_path / "run", symlinks=True)
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"put back a copy.*--init {run}/checkpoints/latest"):
        built(replace(finished, out=run))
    run_to_end(replace(finished, out=tmp_path / "new", init=run / "checkpoints" / "latest"))
    assert RunFolder(tmp_path / "new").is_finished()
