"""Digests of a source's files are kept: each file is hashed once for all parts and starts."""

import os
import threading

import pytest

from data_prep.sources import file_digests
from data_prep.sources.file_digests import DigestFolder, digests_of
from storage.digest import file_sha256


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / name for name in "abc"]
    for path in found:
        path.write_text(path.name)
    return found


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed from now on."""
    names = []
    monkeypatch.setattr(
        file_digests, "file_sha256", lambda path: names.append(path.name) or file_sha256(path)
    )
    return names


def test_only_files_that_changed_are_hashed_again(paths, tmp_path, hashed):
    kept = DigestFolder(tmp_path / "work", shared=True)
    right = [file_sha256(path) for path in paths]
    assert digests_of(paths, kept) == right
    paths[1].write_text("B")
    os.utime(paths[1], ns=(0, paths[0].stat().st_mtime_ns))
    assert digests_of(paths, kept) == [right[0], file_sha256(paths[1]), right[2]]
    assert sorted(hashed) == ["a", "b", "b", "c"]


def test_alone_nothing_is_kept_before_there_is_a_work_folder(paths, tmp_path, hashed):
    kept = DigestFolder(tmp_path / "work")
    digests_of(paths, kept)
    assert not kept.folder.exists()
    kept.folder.mkdir()
    for _ in range(3):
        digests_of(paths, kept)
    assert len(hashed) == 6


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"PATH": [1, 2]}', '{"PATH": 3}'])
def test_a_damaged_file_of_digests_only_costs_time(paths, tmp_path, content):
    kept = DigestFolder(tmp_path / "work", shared=True)
    right = digests_of(paths, kept)
    kept.path.write_text(content.replace("PATH", str(paths[0])))
    assert digests_of(paths, kept) == right


def test_parts_that_start_together_hash_once(paths, tmp_path, hashed, caplog, monkeypatch):
    monkeypatch.setattr(file_digests, "_LOCK_PATIENCE_SECONDS", 0.0)
    kept = DigestFolder(tmp_path / "work", shared=True)
    kept.folder.mkdir()
    with caplog.at_level("INFO"), file_digests._one_part_at_a_time(kept.folder):
        part = threading.Thread(target=digests_of, args=(paths, kept))
        part.start()
        while "another part is hashing" not in caplog.text:
            assert part.is_alive()
        file_digests._with_kept(paths, kept)
    part.join()
    assert len(hashed) == 3
