"""Parts prepared by several processes in one folder: one plan, locks, and the merge."""

import errno
import fcntl
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dataset.staging import staging_lock
from data_prep.hub.supply import download_lock
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare, prepare_part
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.work_locks import Part, exclusive_lock, part_lock, planning_lock
from data_prep.sources.file_source import file_source
from eval.subject import EvalOptions
from eval.watching.evals_file import EvalsFile
from storage.locks import NO_LOCKS, take_lock
from storage.run_folder import RunFolder
from tests.data_prep.stories import STORIES, folder_bytes, prepared, write_lines

OPTIONS = PrepareOptions(workers=1, shard_tokens=300, val_tokens=500, part="1/2")
OTHER = replace(OPTIONS, shard_tokens=200)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def source(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    return file_source([str(tmp_path / "a.jsonl")])


def merged(source, out: Path, options: PrepareOptions, *parts: str) -> dict[str, bytes]:
    """Make part 2 or the given ones, merge, and return the bytes of the data set."""
    for part in parts or ("2/2",):
        prepare_part(source, out, replace(options, part=part))
    prepare(source, out, replace(options, part=None, merge=True))
    return folder_bytes(out)


def right(source, out: Path, options: PrepareOptions) -> dict[str, bytes]:
    prepare(source, out, replace(options, part=None))
    return folder_bytes(out)


@pytest.mark.fault("D7", injected="a part with other options while one is at work")
def test_a_part_with_other_options_is_refused_while_one_is_at_work(source, tmp_path, monkeypatch):
    real, refused = UnitWork.run, []

    def run(self, *what):
        if not refused:
            with pytest.raises(ValueError, match=r"other options \(shard_tokens=300 "):
                prepare_part(source, tmp_path / "out", replace(OTHER, part="2/2"))
            refused.append(True)
        return real(self, *what)

    monkeypatch.setattr(UnitWork, "run", run)
    prepare_part(source, tmp_path / "out", OPTIONS)
    assert refused
    made = merged(source, tmp_path / "out", OPTIONS)
    assert made == right(source, tmp_path / "right", OPTIONS)


def test_parts_that_start_together_replace_a_plan_that_is_not_in_use(source, tmp_path):
    partial = tmp_path / "out.partial"
    prepare_part(source, tmp_path / "out", OPTIONS)
    shutil.rmtree(partial / "units")
    with part_lock(partial, Part(2, 2)):  # which has not planned yet
        prepare_part(source, tmp_path / "out", OTHER)
    assert merged(source, tmp_path / "out", OTHER) == right(source, tmp_path / "right", OTHER)


def test_a_unit_under_another_name_than_its_own_does_not_count(source, tmp_path):
    prepare_part(source, tmp_path / "out", OPTIONS)
    first, second, *_ = sorted((tmp_path / "out.partial" / "units").glob("[!.]*"))
    first.rename(tmp_path / "first")
    second.rename(first)
    (tmp_path / "first").rename(second)
    made = merged(source, tmp_path / "out", OPTIONS, "1/2", "2/2")
    assert made == right(source, tmp_path / "right", OPTIONS)


OLDER = ['{"units": "ab", "shard_tokens": 300}', "[3]", "{", "{}", '{"layout": 2}', "null"]


@pytest.mark.parametrize("plan", OLDER)
def test_the_work_folder_of_an_older_version_is_one_sentence(source, tmp_path, plan):
    prepare_part(source, tmp_path / "out", OPTIONS)
    (tmp_path / "out.partial" / "plan.json").write_text(plan)
    with pytest.raises(ValueError, match=r"out.partial.*(delete it and start again|is damaged)"):
        prepare_part(source, tmp_path / "out", OPTIONS)


def test_the_latest_number_of_parts_decides_which_part_is_missing(source, tmp_path):
    for part in ("1/3", "1/4", "2/4", "4/4"):
        prepare_part(source, tmp_path / "out", replace(OPTIONS, part=part))
    with pytest.raises(ValueError, match=r"part 3/4: \d of"):
        prepare(source, tmp_path / "out", replace(OPTIONS, part=None, merge=True))


def refusing(*numbers: int):
    """A `flock` that always fails with the first of these error numbers."""
    errors = list(numbers)

    def flock(file, how):
        raise OSError(errors[0], os.strerror(errors[0]))

    return flock


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_reported_once(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    for name in "ab":
        with (tmp_path / name).open("a+") as file:
            take_lock(file)
    assert caplog.text.count("see to it yourself that nothing is started twice there") == 1


def test_another_failure_of_a_lock_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with (tmp_path / "a").open("a+") as file, pytest.raises(OSError, match="Input/output"):
        take_lock(file)


@contextmanager
def recording(folder: Path):
    EvalsFile(folder / "evals.jsonl", EvalOptions()).close()
    yield


@contextmanager
def running(run: RunFolder):
    run.lock()
    yield
    run.unlock()


@pytest.mark.fault("S6", injected="a file system without locks")
@pytest.mark.parametrize(
    "locked",
    [
        exclusive_lock,
        lambda folder: part_lock(folder, Part(1, 2)),
        planning_lock,
        download_lock,
        lambda folder: staging_lock(folder / "lock"),
        lambda folder: RunFolder(folder).emergency_save_lock(),
        lambda folder: running(RunFolder(folder)),
        recording,
    ],
    ids=["all", "part", "plan", "listing", "stage", "emergency save", "run", "evals"],
)
def test_no_lock_of_ours_is_needed(tmp_path, monkeypatch, caplog, locked):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    with locked(tmp_path):
        pass
    assert "is on a file system without locks" in caplog.text


def test_parts_are_prepared_where_a_lock_needs_the_mode_of_its_file(source, tmp_path, monkeypatch):
    # As on NFSv4, where an exclusive lock needs a file open for writing, a shared one for reading.
    real = fcntl.flock

    def flock(file, how):
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        wrong = {fcntl.LOCK_SH: os.O_WRONLY, fcntl.LOCK_EX: os.O_RDONLY}[how & ~fcntl.LOCK_NB]
        if mode == wrong:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    prepare_part(source, tmp_path / "out", replace(OPTIONS, part="1/1"))
    prepare_part(source, tmp_path / "out", OPTIONS)
    made = merged(source, tmp_path / "out", OPTIONS)
    assert made == right(source, tmp_path / "right", OPTIONS)


def is_open(status: os.stat_result) -> bool:
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(f"/proc/self/fd/{descriptor}"), status):
                return True
        except OSError:
            continue
    return False


@pytest.fixture
def nfs(monkeypatch):
    """As on NFS: a file that is removed while open stays in its folder, under another name."""
    unlink, rmdir = os.unlink, os.rmdir

    def silly_unlink(path, *, dir_fd=None):
        status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if not is_open(status):
            return unlink(path, dir_fd=dir_fd)
        hidden = os.path.join(os.path.dirname(path), f".nfs{status.st_ino:016x}")
        return os.rename(path, hidden, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def late_rmdir(path, *, dir_fd=None):
        if dir_fd is None:
            for hidden in Path(path).glob(".nfs*"):
                if not is_open(hidden.stat()):
                    unlink(hidden)
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", silly_unlink)
    monkeypatch.setattr(os, "rmdir", late_rmdir)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_preparation_ends_normally_where_an_open_file_keeps_its_folder(tmp_path, nfs):
    write_lines(tmp_path / "a.jsonl", STORIES)
    for _ in range(2):
        prepared(tmp_path, "a.jsonl", shard_tokens=300)
        assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "out"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_failed_listing_leaves_no_files_there(tmp_path, nfs):
    with (
        pytest.raises(ValueError, match="the Hub does not answer"),
        download_lock(tmp_path / "source"),
    ):
        raise ValueError("the Hub does not answer")
    assert os.listdir(tmp_path) == []


def test_an_error_is_raised_even_if_the_folder_of_the_lock_is_gone(tmp_path):
    with (
        pytest.raises(ValueError, match="the Hub does not answer"),
        download_lock(tmp_path / "source"),
    ):
        shutil.rmtree(tmp_path / "source")
        raise ValueError("the Hub does not answer")


def in_parts(folder: Path, *parts: str) -> None:
    source = file_source([str(folder / "a.jsonl")])
    for part in parts:
        options = PrepareOptions(workers=1, shard_tokens=300, val_tokens=500, part=part)
        prepare_part(source, folder / "parts", options)


def test_parts_in_any_order_and_their_merge_are_the_bytes_of_one_run(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    prepared(tmp_path, "a.jsonl", shard_tokens=300, val_tokens=500)
    in_parts(tmp_path, "2/3", "3/3", "2/3")
    source = file_source([str(tmp_path / "a.jsonl")])
    merge = PrepareOptions(workers=1, shard_tokens=300, val_tokens=500, merge=True)
    with pytest.raises(ValueError, match=r"part 1/3: \d of .*run each missing part again"):
        prepare(source, tmp_path / "parts", merge)
    in_parts(tmp_path, "1/3")
    prepare(source, tmp_path / "parts", merge)
    assert folder_bytes(tmp_path / "parts") == folder_bytes(tmp_path / "out")
    in_parts(tmp_path, "1/3")  # complete already
    assert not (tmp_path / "parts.partial").exists()


def test_parts_run_in_parallel_but_neither_twice_nor_beside_a_merge(tmp_path):
    partial = tmp_path / "out.partial"
    with part_lock(partial, Part(1, 3)), part_lock(partial, Part(2, 3)):
        with pytest.raises(ValueError, match="preparing"), part_lock(partial, Part(2, 3)):
            pass
        with pytest.raises(ValueError, match="preparing"), exclusive_lock(partial):
            pass
    refused = pytest.raises(ValueError, match="preparing")
    with exclusive_lock(partial), refused, part_lock(partial, Part(1, 3)):
        pass


def test_parts_of_different_numbers_of_parts_do_not_run_in_parallel(tmp_path):
    partial = tmp_path / "out.partial"
    refused = pytest.raises(ValueError, match="prepared in 3 parts, which overlap with part 1/2")
    with part_lock(partial, Part(1, 3)), refused, part_lock(partial, Part(1, 2)):
        pass
    with part_lock(partial, Part(1, 2)):
        pass


@given(st.integers(1, 40), st.integers(0, 200))
def test_the_parts_together_have_every_unit_once(parts, units):
    shares = [number for i in range(1, parts + 1) for number in Part(i, parts).units(units)]
    assert shares == list(range(units))
