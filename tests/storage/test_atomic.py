"""A file or folder is complete or absent, and bad JSON is refused by name."""

import errno
import os
import stat
from pathlib import Path

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


def test_a_device_or_a_pipe_of_the_shell_is_written_to_and_stays_what_it_is():
    reader, writer = os.pipe()
    write_json(Path(f"/dev/fd/{writer}"), {"x": 1})
    assert os.read(reader, 100) == b'{\n  "x": 1\n}\n'
    screen, terminal = os.openpty()
    name = Path(os.ttyname(terminal))
    write_json(name, {"x": 2})
    assert b'"x": 2' in os.read(screen, 100)
    assert stat.S_ISCHR(name.stat().st_mode)
    for descriptor in (reader, writer, screen, terminal):
        os.close(descriptor)


def test_a_pipe_in_the_way_of_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.json")  # which blocks whoever opens it
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}


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


def fsync_fails(monkeypatch, number, folders):
    """Let the kernel refuse to flush folders, or files."""
    real = os.fsync

    def refused(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr("os.fsync", refused)


@pytest.mark.fault("S6", injected="fsync of folders refused with one of 5 errors", lost="0")
@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EBADF", "EACCES", "ENOSYS"])
def test_a_file_system_that_cannot_flush_folders_will_do(tmp_path, monkeypatch, name):
    fsync_fails(monkeypatch, getattr(errno, name), folders=True)
    with new_folder(tmp_path / "run") as temporary:
        write_json(temporary / "a.json", {"x": 1})
    assert read_json(tmp_path / "run" / "a.json") == {"x": 1}


def test_a_folder_that_a_failing_disk_does_not_flush_is_an_error(tmp_path, monkeypatch):
    fsync_fails(monkeypatch, errno.EIO, folders=True)
    with pytest.raises(OSError, match="Input/output error"):
        write_json(tmp_path / "a.json", {})


@pytest.mark.parametrize("name", ["EINVAL", "EIO", "ENOSPC"])
def test_a_file_that_is_not_flushed_is_always_an_error(tmp_path, monkeypatch, name):
    fsync_fails(monkeypatch, getattr(errno, name), folders=False)
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == []


def test_a_folder_gets_no_name_if_a_check_just_before_speaks_against_it(tmp_path):
    def refuse():
        assert os.listdir(tmp_path) != []
        raise ValueError("it is somebody else's")

    with pytest.raises(ValueError, match="somebody else's"), new_folder(tmp_path / "run", refuse):
        pass
    assert os.listdir(tmp_path) == []
