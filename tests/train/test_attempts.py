"""A run that starts again and again without getting further gives up."""

import shutil

import pytest

from storage.run_folder import RunFolder
from tests.runs import built, nano_config
from train.recovery import restarts as attempts
from train.recovery.restarts import count_restart


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.001)
    return RunFolder(tmp_path)


def started(folder, step, by_itself=True, state="running"):
    folder.attempt = count_restart(folder, step, by_itself)
    folder.write_status(state, step, "bad batch")
    return folder.attempt["attempts"]


def test_the_fourth_restart_without_progress_is_refused_with_the_reason(folder):
    assert [started(folder, 7, by_itself=n > 0) for n in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"4 times at step 7 .*last reason: bad batch"):
        started(folder, 7)


def test_progress_begins_the_count_anew(folder):
    assert [started(folder, step) for step in (7, 7, 8, 8, 9)] == [1, 2, 1, 2, 1]


def test_a_person_may_always_try_again(folder):
    assert [started(folder, 7, by_itself=False) for _ in range(6)] == [1] * 6


def test_a_preempted_start_is_no_failure(folder):
    assert [started(folder, 7, state="preempted") for _ in range(6)] == [1] * 6


def test_the_pause_doubles(folder, monkeypatch):
    pauses = []
    monkeypatch.setattr(attempts.time, "sleep", pauses.append)
    for _ in range(4):
        started(folder, 7)
    assert pauses == [0.001, 0.002, 0.004]


def test_a_restart_that_only_another_machines_torchrun_has_counted_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("train.build.any_rank", lambda own, device: True)
    config, counts = nano_config(tmp_path), []
    for _ in range(3):
        shutil.rmtree(config.out / "tensorboard", ignore_errors=True)  # it waits for a second
        run = built(config)
        run.close()
        counts.append(run.folder.attempt["attempts"])
    assert counts == [1, 2, 3]
