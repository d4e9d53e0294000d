"""A staged copy of a data set: complete, checked, used again, and replaced when damaged."""

import os
from collections import namedtuple
from dataclasses import replace

import pytest

from data_prep.dataset import staging
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.dataset.staging import stage_data_set, staged_folder
from data_prep.order import epoch_index
from storage.atomic import _temporary_path
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.launching import torchrun
from tests.runs import built, flags, lines, run_to_end, tiny_config


@pytest.fixture
def data(tmp_path):
    return tiny_data_set(tmp_path / "data", documents=100, tokenizer=small_tokenizer())


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_staged_data_set_is_the_data_set(data, tmp_path):
    stage_data_set(data, tmp_path / "stage")
    copy = open_data_set(staged_folder(data, tmp_path / "stage"))
    assert content(copy.folder) == content(data.folder)


def test_a_complete_copy_is_used_again(data, tmp_path, monkeypatch):
    stage_data_set(data, tmp_path / "stage")
    monkeypatch.setattr(staging, "_copy", None)
    stage_data_set(data, tmp_path / "stage")


@pytest.mark.parametrize("damage", [flip, os.unlink])
def test_a_damaged_copy_is_made_again(data, tmp_path, damage):
    stage_data_set(data, tmp_path / "stage")
    copy = staged_folder(data, tmp_path / "stage")
    damage(copy / "train_000001.npy")
    stage_data_set(data, tmp_path / "stage")
    assert content(copy) == content(data.folder)


def test_an_interrupted_copy_is_continued(data, tmp_path, monkeypatch):
    copied = []
    real = staging._copy_file

    def dies_at_the_fourth(source, target, digest):
        if len(copied) == 3:
            raise OSError("the disk is gone")
        copied.append(source)
        real(source, target, digest)

    monkeypatch.setattr(staging, "COPYING_THREADS", 1)
    monkeypatch.setattr(staging, "_copy_file", dies_at_the_fourth)
    with pytest.raises(ValueError, match=r"cannot be copied there \(the disk is gone\); free"):
        stage_data_set(data, tmp_path / "stage")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "stage").rglob("*.npy")}
    assert len(stamps) == 3
    monkeypatch.setattr(staging, "_copy_file", real)
    stage_data_set(data, tmp_path / "stage")
    copy = staged_folder(data, tmp_path / "stage")
    assert content(copy) == content(data.folder)
    kept = {(copy / p.name).stat().st_mtime_ns for p in stamps}
    assert kept == set(stamps.values())


def test_a_file_that_arrives_damaged_is_named_and_nothing_is_published(data, tmp_path):
    flip(data.folder / "train_000000.npy")
    with pytest.raises(ValueError, match=r"train_000000\.npy arrives with sha256"):
        stage_data_set(data, tmp_path / "stage")
    assert not staged_folder(data, tmp_path / "stage").exists()


@pytest.fixture
def of_dead(monkeypatch):
    """The temporary name of a file that a process which is dead was writing."""

    def name(path):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1 << 23)
            return _temporary_path(path)

    return name


def test_what_a_killed_copy_left_is_not_published(data, tmp_path, of_dead):
    target = staged_folder(data, tmp_path / "stage")
    left = of_dead(target.with_name(f".{target.name}.partial") / "train_000000.npy")
    left.parent.mkdir(parents=True)
    left.write_text("half a file")
    stage_data_set(data, tmp_path / "stage")
    assert not list(target.rglob("*.partial"))


def test_a_check_removes_what_dead_processes_left_in_the_data_set(data, of_dead):
    left = of_dead(data.folder / ".digests-0-of-1.json")
    alive = _temporary_path(data.folder / ".digests-0-of-2.json")
    for path in (left, alive):
        path.write_text("{")
    check_data_set(data, "cached")
    assert (left.exists(), alive.exists()) == (False, True)


def test_a_stored_index_removes_what_dead_processes_left(data, of_dead, monkeypatch):
    monkeypatch.setattr(epoch_index, "MIN_CACHED_DOCUMENTS", 1)
    left = of_dead(epoch_index.index_path(data.split("train"), 1, 0))
    left.parent.mkdir()
    left.write_text("half")
    epoch_index.open_index(data.split("train"), 1, 0)
    assert [path.suffix for path in left.parent.iterdir()] == [".words"]


def test_too_little_disk_space_is_reported_before_copying(data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")(10)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"has 0\.0 GB free and .* takes"):
        stage_data_set(data, tmp_path / "stage")


@pytest.mark.long
def test_a_run_that_reads_the_copy_reads_the_same_data(data, tmp_path):
    plain = tiny_config(data.folder, tmp_path / "plain")
    staged = replace(plain, out=tmp_path / "staged", stage=tmp_path / "stage")
    run_to_end(plain)
    done = torchrun(2, *flags(staged, "--stage", str(tmp_path / "stage")))
    assert done.returncode == 0, done.stderr[-2000:]
    digests = [[x.get("data/digest") for x in lines(run.out)] for run in (plain, staged)]
    assert digests[0] == digests[1]


def test_a_run_may_be_staged_or_not_from_one_start_to_the_next(data, tmp_path):
    config = tiny_config(data.folder, tmp_path / "run")
    run_to_end(config)
    run = built(replace(config, stage=tmp_path / "stage", out=tmp_path / "other"))
    run.close()
    assert run.data.sources[0].data.folder == staged_folder(data, tmp_path / "stage")
    assert run.data.fingerprint == data.fingerprint
    run = built(replace(config, out=tmp_path / "other"))
    run.close()
    assert run.data.sources[0].data.folder == data.folder


def test_a_stage_that_cannot_be_written_is_one_sentence(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--stage .*file.* cannot be copied there"):
        built(tiny_config(data.folder, tmp_path / "run", stage=tmp_path / "file" / "below"))
