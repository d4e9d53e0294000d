"""Data are read again beside training: damage in use is found, all else only reported."""

import json
import logging
import os
import time

import pytest

from data_prep.dataset import recheck
from data_prep.dataset.disk_reading import hash_from_disk, is_cached, opened_for_hashing
from data_prep.dataset.recheck import Recheck
from data_prep.dataset.shards import check_data_set
from storage import digest
from storage.digest import file_sha256
from tests.data_sets import tiny_data_set

HOURS = 1e-6  # all files in 4 ms


@pytest.fixture
def data(tmp_path):
    return tiny_data_set(tmp_path / "data", documents=60)


@pytest.fixture
def start():
    """Starts the reading of a data set; ends it after the test."""
    started = []

    def start(data, hours=HOURS, **more):
        reader = Recheck(data, data.split("train"), hours, **more)
        started.append(reader)
        reader.start()
        return reader

    yield start
    for reader in started:
        reader.close()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_all(reader, rounds=1):
    """Wait until every file was read so often from now on."""
    last = reader.files_read + rounds * len(reader._files) + 1  # one may be half read
    wait_until(lambda: reader.files_read >= last)


def change_in_place(path):
    """Change the last byte; size, name and modification time of the file stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.fault("D10", injected="one byte of a shard while it is trained on")
@pytest.mark.parametrize("name", ["train_000001.npy", "val_000000.npy"])
def test_a_file_in_use_that_is_changed_in_place_is_found(data, start, name):
    reader = start(data)
    read_all(reader)
    assert reader.damage is None
    change_in_place(data.folder / name)
    wait_until(lambda: reader.damage is not None)
    assert reader.damage.path == data.folder / name
    assert f"{name} has sha256 {file_sha256(data.folder / name)}" in reader.damage.sentence
    assert 0 < reader.damage.right_at <= time.time()


@pytest.mark.fault("D10", injected="one byte of lengths or sources while a run trains")
@pytest.mark.parametrize("kind", ["lengths", "source"])
def test_a_damaged_file_that_only_a_later_start_reads_is_reported_once(data, start, caplog, kind):
    change_in_place(data.folder / f"train_000000.{kind}.npy")
    reader = start(data)
    read_all(reader, rounds=2)
    assert reader.damage is None
    assert caplog.text.count("a later start will: copy it again") == 1


def test_the_digest_of_a_damaged_file_is_forgotten_although_its_times_are_the_same(
    data, start, monkeypatch
):
    monkeypatch.setattr(digest, "_COARSEST_CLOCK_NS", 0)
    for share in ((0, 2), (1, 2)):
        check_data_set(data, "cached", share)
    path = data.folder / "train_000001.npy"
    change_in_place(path)
    kept = data.folder / ".digests-1-of-2.json"
    entries = json.loads(kept.read_text())
    stat = path.stat()  # a disk that loses bits changes no time: make the entry fit
    entries[path.name][:-1] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    kept.write_text(json.dumps(entries))
    check_data_set(data, "cached", (1, 2))
    reader = start(data)
    wait_until(lambda: reader.damage is not None)
    with pytest.raises(ValueError, match=r"train_000001\.npy has sha256"):
        check_data_set(data, "cached", (1, 2))


def test_what_training_has_open_is_read_not_what_took_its_name(data, start):
    reader = start(data)
    read_all(reader)
    other = data.folder / "other"
    other.write_bytes(b"another data set, prepared in the same folder")
    other.rename(data.folder / "train_000000.npy")
    read_all(reader)
    assert reader.damage is None


def test_a_file_read_wrongly_once_is_reported_and_does_not_end_the_run(
    data, start, caplog, monkeypatch
):
    wrong, real = [True], recheck.hash_from_disk

    def unsound(*arguments):
        found, same = real(*arguments)
        return ("0" * 64, same) if wrong and wrong.pop() else (found, same)

    monkeypatch.setattr(recheck, "hash_from_disk", unsound)
    reader = start(data)
    read_all(reader)
    wait_until(lambda: "are not sound" in caplog.text)
    assert reader.damage is None


@pytest.mark.fault("S6", injected="EIO of every reading beside training")
def test_a_file_that_cannot_be_read_is_reported_once_and_tried_again(
    data, start, caplog, monkeypatch
):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(recheck, "hash_from_disk", broken)
    reader = start(data)
    read_all(reader, rounds=2)
    assert reader.damage is None
    assert caplog.text.count("cannot be read again now") == len(reader._files)


def test_an_error_of_the_reader_itself_ends_only_the_reader(data, start, caplog, monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(recheck, "hash_from_disk", broken)
    reader = start(data)
    reader._thread.join(20)
    assert "no longer read again beside training: no room" in caplog.text
    assert reader.damage is None


def test_the_file_that_was_right_longest_ago_is_read_first(data, start, monkeypatch):
    now = time.time()
    names = [file.path.name for file in Recheck(data, data.split("train"), 1)._files]
    record = {name: now - 100 for name in names}
    record |= {"train_000001.npy": now - 300, "val_000000.source.npy": now - 200}
    record |= {"no file of this set": 5, "train_000000.npy": now + 1e6}  # a clock that was set back
    (data.folder / ".rechecked.json").write_text(json.dumps(record))
    order = []
    monkeypatch.setattr(Recheck, "_check", lambda self, file: order.append(file.path.name))
    for _ in range(3):
        reader = start(data)
        reader._thread.join(20)  # `_check` returned None: read no further
        reader._right_at[order[-1]] = now
        reader._save_record()
    assert order[:3] == ["train_000000.npy", "train_000000.npy", "train_000000.npy"]
    del record["train_000000.npy"]
    (data.folder / ".rechecked.json").write_text(json.dumps(record | {"train_000000.npy": now - 1}))
    order.clear()
    for _ in range(2):
        reader = start(data)
        reader._thread.join(20)
        reader._right_at[order[-1]] = time.time()
        reader._save_record()
    assert order == ["train_000001.npy", "val_000000.source.npy"]


@pytest.mark.parametrize("content", ["", "[]", '{"train_000000.npy": "x"}', "3", None])
def test_a_damaged_record_or_one_that_cannot_be_written_only_changes_the_order(
    data, start, content
):
    record = data.folder / ".rechecked.json"
    record.mkdir() if content is None else record.write_text(content)
    reader = start(data)
    read_all(reader)
    reader.close()
    assert reader.damage is None
    if content is not None:
        assert set(json.loads(record.read_text())) >= {"train_000000.npy", "val_000000.npy"}


def test_the_first_round_is_reported_and_later_ones_at_most_once_an_hour(data, start, caplog):
    caplog.set_level(logging.INFO)
    reader = start(data)
    read_all(reader, rounds=3)
    assert caplog.text.count("read again in") == 1
    assert f"{data.folder}: 9 of 9 files read again in" in caplog.text


def test_the_pace_takes_all_files_within_the_time_and_small_ones_often(data):
    assert Recheck(data, data.split("train"), 24)._pace == recheck._SLOWEST_PACE
    large = Recheck(data, data.split("train"), 24)._files[0]
    assert large.bytes == 2 * data.manifest.train.shards[0].tokens
    reader = Recheck(data, data.split("train"), 1e-5)
    assert reader._pace * 1e-5 * 3600 > 9 * recheck.SMALLEST_CHARGE


def test_a_file_is_read_no_faster_than_the_pace(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 << 19))
    asked = []

    def wait(seconds):
        asked.append(seconds)
        return False

    with opened_for_hashing(path, None) as descriptor:
        assert hash_from_disk(descriptor, 1e6, wait) == (file_sha256(path), True)
    assert sum(asked) == pytest.approx((5 << 19) / 1e6, rel=0.1)
    assert all(seconds < 1.05 for seconds in asked)


def cached_parts(path):
    """Whether the page cache has each quarter of a file."""
    quarter = path.stat().st_size // 4
    with path.open("rb") as file:
        return {is_cached(file.fileno(), part * quarter, quarter) for part in range(4)}


def uncached_file(path):
    path.write_bytes(os.urandom(1 << 22))
    with path.open("rb") as file:
        os.fsync(file.fileno())  # the kernel drops only pages that are on the disk
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_the_page_cache_has_afterwards_what_it_had_before(tmp_path):
    if cached_parts(uncached_file(tmp_path / "control")) != {False}:
        pytest.skip("this file system keeps its pages, or does not tell")
    path = uncached_file(tmp_path / "file")
    with opened_for_hashing(path, None) as descriptor:
        hash_from_disk(descriptor, float("inf"), lambda _: False)
    assert cached_parts(path) == {False}
    path.read_bytes()
    with opened_for_hashing(path, None) as descriptor:
        found, same = hash_from_disk(descriptor, float("inf"), lambda _: False)
    assert (found, same) == (file_sha256(path), True)
    assert cached_parts(path) == {True}


@pytest.mark.fault("D10", injected="a page cache that differs from the disk")
def test_a_page_cache_that_differs_from_the_disk_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3000)
    real, readings = os.preadv, []

    def preadv(descriptor, buffers, position, *flags):
        got = real(descriptor, buffers, position, *flags)
        if not flags and got:
            readings.append(got)
            if len(readings) == 1:  # the first is the cache's
                buffers[0][100] ^= 1
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    with opened_for_hashing(path, None) as descriptor:
        found, same = hash_from_disk(descriptor, float("inf"), lambda _: False)
    assert (found, same) == (file_sha256(path), False)


def test_a_pipe_in_the_place_of_a_file_does_not_block(data, start, caplog):
    path = data.folder / "val_000000.npy"
    path.unlink()
    os.mkfifo(path)
    reader = start(data)
    read_all(reader)
    wait_until(lambda: "cannot be read again now" in caplog.text)
