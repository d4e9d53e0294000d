"""A start finds the run folder as a kill or another disk left it, and puts it in order."""

import errno
import os
import shutil
import sys
from dataclasses import replace

import pytest

from storage.atomic import read_json
from storage.ownership.latest import latest_name
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.data_sets import tiny_data_set
from tests.runs import built, flags, forget_after, nano_config, run_to_end, starts
from train.checkpoints.config_changes import check_same_run
from train.main import main


@pytest.fixture
def config(tmp_path):
    """A finished run of eight steps, of which every second was saved."""
    found = nano_config(tmp_path, save=SaveConfig(2, 0, keep=9), rehearsal=False)
    run_to_end(found)
    return found


def start(config, monkeypatch, *more):
    monkeypatch.setattr(sys, "argv", flags(config, "--no-rehearsal", *more))
    main()


def turned_back(config, state):
    """As a kill leaves it between the two renames of the last save."""
    link = config.out / "checkpoints" / "latest"
    link.unlink()
    link.symlink_to("step_000006")
    RunFolder(config.out).write_status(state, 6 if state == "running" else 8)


@pytest.mark.fault("S1", injected="SIGKILL before `latest` is turned", lost="0")
@pytest.mark.parametrize("state", ["running", "finished"])
def test_latest_is_put_right_at_the_next_start(config, monkeypatch, state):
    turned_back(config, state)
    start(config, monkeypatch)
    assert latest_name(config.out / "checkpoints") == "step_000008"


def test_latest_of_a_finished_run_that_is_gone_comes_back(config, monkeypatch):
    (config.out / "checkpoints" / "latest").unlink()
    start(config, monkeypatch)
    assert latest_name(config.out / "checkpoints") == "step_000008"


@pytest.mark.fault("S3", injected="a bit in the last checkpoint of a finished run", lost="interval")
def test_a_finished_run_whose_last_checkpoint_is_damaged_does_its_last_steps_again(
    config, monkeypatch
):
    weights = config.out / "checkpoints" / "step_000008" / "model.safetensors"
    straight = weights.read_bytes()
    weights.write_bytes(straight[:-1] + bytes([straight[-1] ^ 1]))
    start(config, monkeypatch, "--save.keep", "9")
    assert starts(config.out) == [0, 6]
    assert weights.read_bytes() == straight
    assert latest_name(config.out / "checkpoints") == "step_000008"
    assert read_json(config.out / "status.json")["state"] == "finished"


def test_a_finished_run_whose_checkpoints_were_all_removed_stays_finished(config, monkeypatch):
    shutil.rmtree(config.out / "checkpoints")
    start(config, monkeypatch)
    assert starts(config.out) == [0]


def test_a_finished_run_in_an_archive_that_cannot_be_written_is_still_finished(
    config, monkeypatch, caplog
):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("storage.ownership.folder_lock.FolderLock.take", refused)
    start(config, monkeypatch)
    assert "is finished" in caplog.text


LEFT = [
    ".config.json.host.12.partial",
    ".status.json.host.12.partial",
    ".metrics.jsonl.partial",
    "checkpoints/.latest.12",
    "checkpoints/.step_000010.host.12.partial/model.json",
    "checkpoints/step_000008/.results.json.host.12.partial",
    "samples/.step_000004.txt.host.12.partial",
    "blackbox/.step_000004.host.12.partial/box.json",
    ".rehearsal/checkpoints/step_000000/model.json",
]


@pytest.mark.fault("S1", injected="what killed processes leave in a run folder", lost="0")
def test_what_killed_processes_left_is_removed_and_nothing_else(config, monkeypatch):
    kept = [".notes", ".partial", "report.partial", "checkpoints/.survivors", "train.log"]
    for name in (*LEFT, *kept):
        path = config.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    start(config, monkeypatch)
    assert [name for name in LEFT if (config.out / name).parent.exists()
            and (config.out / name).exists()] == []  # fmt: skip
    assert all((config.out / name).exists() for name in kept)


@pytest.mark.parametrize(
    "name", ["train.log", "slurm-4711.out", "lost+found/x", "notes/x", ".hidden", "samples/"]
)
def test_a_new_run_begins_in_a_folder_with_other_things(tmp_path, name):
    config = nano_config(tmp_path, steps=3, rehearsal=False)
    path = config.out / name
    path.parent.mkdir(parents=True)
    path.mkdir() if name.endswith("/") else path.write_text("the user's")
    assert run_to_end(config).step == 3
    assert path.exists()


@pytest.mark.parametrize(
    "name", ["samples/x", "blackbox/x", "loss.png", "evals.jsonl", "metrics.discarded.jsonl"]
)
def test_a_name_that_a_run_would_write_is_refused_with_the_cure(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("somebody's")
    top = name.partition("/")[0]
    with pytest.raises(ValueError, match=f"move .*/run/{top} away or choose another --out"):
        check_same_run(RunFolder(tmp_path / "run"), {}, {})


def test_checkpoints_without_their_config_are_refused_with_a_cure(config):
    (config.out / "config.json").unlink()
    with pytest.raises(ValueError, match=r"step_000008 but no config.json; to continue that run"):
        built(config)


@pytest.mark.parametrize("step", [0, 1])
def test_checkpoints_may_be_on_another_disk(tmp_path, step):
    big = tmp_path / "big"
    (big / "lost+found").mkdir(parents=True)
    config = nano_config(tmp_path, steps=4, save=SaveConfig(2, 0), rehearsal=bool(step))
    config.out.mkdir()
    (config.out / "checkpoints").symlink_to(big)
    run_to_end(config)
    run_to_end(replace(config, steps=6, allow=("steps",)))
    assert latest_name(big) == "step_000006"


def test_a_run_is_not_begun_in_a_data_set(tmp_path):
    data = tmp_path / "set"
    tiny_data_set(data, documents=100)
    with pytest.raises(ValueError, match="is a data set; choose another folder"):
        built(replace(nano_config(tmp_path), out=data))


@pytest.mark.fault("S6", injected="no links, no fsync of folders", lost="0", identical=True)
def test_a_run_on_a_poor_file_system_is_trained_pruned_and_continued(tmp_path, monkeypatch):
    config = nano_config(tmp_path, save=SaveConfig(2, 0, keep=1))
    straight = run_to_end(replace(config, out=tmp_path / "straight"))
    real = os.fsync

    def refused(*_, **__):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def poor(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            refused()
        real(descriptor)

    monkeypatch.setattr("os.symlink", refused)
    monkeypatch.setattr("os.fsync", poor)
    run_to_end(replace(config, save=SaveConfig(2, 0, keep=9)))
    forget_after(config.out, 4)
    run = run_to_end(config)
    assert latest_name(run.folder.checkpoints) == "step_000008"
    assert [p.name for p in run.folder.all_checkpoints()] == ["step_000008"]
    for name in ("model.safetensors", "optimizer.safetensors"):
        ends = [r.folder.checkpoint(8) / name for r in (run, straight)]
        assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.fault("S6", injected="`latest` cannot be written at all", lost="0")
def test_a_checkpoint_counts_though_latest_cannot_name_it(tmp_path, monkeypatch, caplog):
    def refused(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("train.checkpoints.checkpoint.point_latest_at", refused)
    run = run_to_end(nano_config(tmp_path, save=SaveConfig(2, 0, keep=1), rehearsal=False))
    assert run.saver.saved_step == 8
    assert [p.name for p in run.folder.all_checkpoints()] == ["step_000008"]
    assert "latest cannot name step_000008 (" in caplog.text
    assert "could not be written" not in caplog.text
