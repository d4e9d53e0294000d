"""A run that no longer has its folder notices it, whatever became of the folder."""

import os
import shutil
from pathlib import Path

import pytest

from storage.ownership.folder_lock import FolderLock, FolderLost


@pytest.fixture
def run(tmp_path):
    """The locked folder `x`."""
    lock = FolderLock(tmp_path / "x" / "lock")
    lock.take("")
    yield lock
    lock.release()


def why(lock):
    """What the check says; the words of an error that it raises."""
    with pytest.raises(FolderLost) as lost:
        lock.check()
    assert lock.lost == str(lost.value)
    return lock.lost


def test_a_folder_that_stays_where_it_is_may_be_written(run):
    run.check()
    (run.path.parent / "more").mkdir()
    run.check()
    assert run.lost == ""


@pytest.mark.fault("S6", injected="the run folder renamed", lost="interval")
def test_a_folder_that_was_moved_is_named_with_its_new_place(run, tmp_path):
    (tmp_path / "x").rename(tmp_path / "y")
    assert f"moved to {tmp_path}/y" in why(run)
    assert f"give --out {tmp_path}/y or move it back" in run.lost
    assert not (tmp_path / "x").exists()


@pytest.mark.fault("S6", injected="the run folder removed", lost="interval")
def test_a_folder_that_was_removed_is_noticed(run, tmp_path):
    shutil.rmtree(tmp_path / "x")
    assert "was removed or moved to another disk" in why(run)


@pytest.mark.fault("P13", injected="the lock file removed", lost="interval")
def test_a_lock_that_was_removed_is_noticed_though_the_folder_is_there(run, tmp_path):
    run.path.unlink()
    assert "the file lock in it was removed" in why(run)


@pytest.mark.fault("P13", injected="the folder renamed and taken by another run", lost="interval")
def test_a_folder_that_another_run_has_taken_is_named_with_its_holder(run, tmp_path):
    (tmp_path / "x").rename(tmp_path / "y")
    other = FolderLock(run.path)
    other.take("4711")
    said = why(run)
    assert f"pid {os.getpid()} on" in said
    assert ", job 4711 has taken it" in said
    assert f"give --out {tmp_path}/y" in said
    other.check()
    other.release()


def test_a_folder_restored_from_a_copy_is_not_the_one_that_was_locked(run, tmp_path):
    shutil.copytree(tmp_path / "x", tmp_path / "copy")
    shutil.rmtree(tmp_path / "x")
    (tmp_path / "copy").rename(tmp_path / "x")
    assert "has taken it" in why(run)


def test_what_was_lost_stays_lost_even_if_the_folder_comes_back(run, tmp_path):
    (tmp_path / "x").rename(tmp_path / "y")
    why(run)
    (tmp_path / "y").rename(tmp_path / "x")
    why(run)


@pytest.mark.fault("S6", injected="stat of the run folder fails with EIO", lost="0")
def test_a_disk_that_does_not_answer_for_a_moment_is_not_a_lost_folder(run, monkeypatch):
    monkeypatch.setattr(Path, "stat", failing_stat)
    run.check()


def failing_stat(path, **_):
    raise OSError(5, "Input/output error", str(path))


def test_where_inode_numbers_change_by_themselves_they_do_not_count(tmp_path, monkeypatch):
    lock = FolderLock(tmp_path / "lock")
    numbers = iter(range(100))
    monkeypatch.setattr("storage.ownership.folder_lock._inode", lambda status: next(numbers))
    lock.take("")
    lock.check()
    lock.path.unlink()
    why(lock)
    lock.release()


def test_another_rank_that_follows_the_lock_notices_too(run, tmp_path):
    follower = FolderLock(run.path)
    follower.follow()
    follower.check()
    (tmp_path / "x").rename(tmp_path / "y")
    assert f"moved to {tmp_path}/y" in why(follower)
    follower.release()


def test_who_has_not_taken_the_folder_is_never_told_that_it_is_lost(tmp_path):
    FolderLock(tmp_path / "nowhere" / "lock").check()
    released = FolderLock(tmp_path / "x" / "lock")
    released.take("")
    released.release()
    shutil.rmtree(tmp_path / "x")
    released.check()


def test_a_loop_of_short_steps_looks_only_now_and_then(run, tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("storage.ownership.folder_lock.time.monotonic", lambda: clock[0])
    run.check_now_and_then()
    (tmp_path / "x").rename(tmp_path / "y")
    run.check_now_and_then()
    clock[0] += 2.0
    with pytest.raises(FolderLost):
        run.check_now_and_then()
