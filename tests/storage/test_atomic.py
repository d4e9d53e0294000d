"""A file or folder is complete or absent, and bad JSON is refused by name."""

import os

import pytest

from storage.atomic import new_file, new_folder, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_folder_never_appears(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as temporary:
        (temporary / "file").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "run"):
        pass


def test_broken_json_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not readable JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_would_fill_the_memory_is_refused_unread(tmp_path):
    path = tmp_path / "state.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # a hole takes no room on the disk
    with pytest.raises(
        ValueError, match=r"state\.json is 10737418240 bytes of JSON, but must be at"
    ):
        read_json(path)
