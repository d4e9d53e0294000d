"""`latest` names a checkpoint, as a link or, where there are no links, as a text file."""

import errno
import os
from pathlib import Path

import pytest

from storage.ownership.latest import follow_latest, latest_name, point_latest_at
from storage.run_folder import RunFolder
from tests.storage.checkpoints import checkpoint


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    checkpoint(folder, 1)
    checkpoint(folder, 2)
    return folder


def without_links(monkeypatch, number=errno.EOPNOTSUPP):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.symlink", refused)


@pytest.mark.fault("S6", injected="symbolic links refused with one of 6 errors", lost="0")
@pytest.mark.parametrize("name", ["EPERM", "EOPNOTSUPP", "EINVAL", "ENOSYS", "EACCES", "EIO"])
def test_where_links_are_refused_a_text_file_names_the_checkpoint(run, monkeypatch, name):
    without_links(monkeypatch, getattr(errno, name))
    for step in (1, 2):
        point_latest_at(run.checkpoint(step))
        assert latest_name(run.checkpoints) == run.checkpoint(step).name
    latest = run.checkpoints / "latest"
    assert latest.read_text() == "step_000002\n"
    assert follow_latest(latest) == run.checkpoint(2)
    assert list(run.checkpoints.glob(".latest*")) == []


def test_a_link_is_replaced_by_a_file_and_a_file_by_a_link(run, monkeypatch):
    latest = run.checkpoints / "latest"
    point_latest_at(run.checkpoint(1))
    with monkeypatch.context() as patched:
        without_links(patched)
        point_latest_at(run.checkpoint(2))
    assert not latest.is_symlink()
    point_latest_at(run.checkpoint(1))
    assert latest.is_symlink()
    assert latest.resolve() == run.checkpoint(1).resolve()


def test_what_names_the_checkpoint_already_is_left_as_it_is(run):
    point_latest_at(run.checkpoint(2))
    before = (run.checkpoints / "latest").lstat().st_ino
    point_latest_at(run.checkpoint(2))
    assert (run.checkpoints / "latest").lstat().st_ino == before


def test_a_folder_called_latest_which_a_copy_has_made_is_kept_aside(run):
    (run.checkpoints / "latest").mkdir()
    point_latest_at(run.checkpoint(2))
    assert (run.checkpoints / "latest.copied").is_dir()
    assert latest_name(run.checkpoints) == "step_000002"


def test_a_path_through_a_text_file_leads_into_the_checkpoint(run):
    (run.checkpoints / "latest").write_text("step_000001")
    inside = follow_latest(run.checkpoints / "latest" / "tokenizer")
    assert inside == run.checkpoint(1) / "tokenizer"


def test_a_relative_path_is_followed_too(run, monkeypatch):
    (run.checkpoints / "latest").write_text("step_000001\n")
    monkeypatch.chdir(run.checkpoints)
    assert follow_latest(Path("latest")) == Path("step_000001")


@pytest.mark.parametrize("text", ["", "../elsewhere", "step_1", "step_000001/..", "\0", "x" * 1000])
def test_a_file_that_names_no_checkpoint_leads_nowhere(run, text):
    latest = run.checkpoints / "latest"
    latest.write_text(text)
    assert latest_name(run.checkpoints) is None
    assert follow_latest(latest) == latest


def test_a_file_that_is_not_text_leads_nowhere(run):
    (run.checkpoints / "latest").write_bytes(b"\xff\xfe\x00")
    assert latest_name(run.checkpoints) is None


@pytest.mark.parametrize("path", [".", "checkpoints"])
def test_the_folder_of_a_run_stands_for_its_newest_checkpoint(run, path):
    assert follow_latest(run.path / path) == run.checkpoint(2)
    (run.checkpoints / "latest").write_text("step_000001")
    assert follow_latest(run.path / path) == run.checkpoint(1)
    (run.checkpoints / "latest").unlink()
    (run.checkpoints / "latest").symlink_to("step_000001")
    assert follow_latest(run.path / path).resolve() == run.checkpoint(1).resolve()


def test_another_path_is_not_changed(run):
    assert follow_latest(run.checkpoint(1)) == run.checkpoint(1)
    assert follow_latest(Path("runs/none/checkpoints/latest")) == Path(
        "runs/none/checkpoints/latest"
    )
