"""Automatic restarts of a run end if they make no progress."""

import shutil

import pytest

from storage.run_folder import RunFolder
from tests.runs import built, nano_config
from train.recovery import restarts
from train.recovery.restarts import count_restart


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_PAUSE_SECONDS", 0.001)
    return RunFolder(tmp_path)


def started(folder, step, automatic=True, state="running"):
    folder.attempt = count_restart(folder, step, automatic)
    folder.write_status(state, step, "bad batch")
    return folder.attempt["attempts"]


def test_the_fourth_restart_without_progress_is_refused_with_the_reason(folder):
    assert [started(folder, 7, automatic=n > 0) for n in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"4 times at step 7 .*last reason: bad batch"):
        started(folder, 7)


def test_progress_resets_the_count(folder):
    assert [started(folder, step) for step in (7, 7, 8, 8, 9)] == [1, 2, 1, 2, 1]


def test_a_manual_start_is_always_allowed(folder):
    assert [started(folder, 7, automatic=False) for _ in range(6)] == [1] * 6


def test_a_preempted_start_does_not_count(folder):
    assert [started(folder, 7, state="preempted") for _ in range(6)] == [1] * 6


def test_the_pause_doubles(folder, monkeypatch):
    pauses = []
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)
    for _ in range(4):
        started(folder, 7)
    assert pauses == [0.001, 0.002, 0.004]


def test_a_restart_counted_by_the_torchrun_of_another_machine_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("train.recovery.run_folder_start.any_rank", lambda own, device: True)
    config, counts = nano_config(tmp_path), []
    for _ in range(3):
        shutil.rmtree(config.out / "tensorboard", ignore_errors=True)  # it waits for a second
        run = built(config)
        run.close()
        counts.append(run.folder.attempt["attempts"])
    assert counts == [1, 2, 3]
