"""The cached index of an epoch: checked before use, built ahead, and never waited for."""

import multiprocessing
import os
import shutil
import time
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest

from data_prep.dataset.shards import open_data_set
from data_prep.order import epoch_index
from data_prep.order import training_stream as order
from data_prep.order.epoch_index import EpochIndex, index_path, open_index
from data_prep.order.training_stream import TrainingStream
from tests.data_sets import tiny_data_set


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "data"
    lengths = np.random.default_rng(3).integers(1, 6, 2500).tolist()
    return tiny_data_set(folder, lengths=lengths, val_fraction=0).folder


@pytest.fixture
def shards(made, tmp_path, monkeypatch):
    """2,500 documents, with the limit lowered so that their index is cached and built ahead."""
    monkeypatch.setattr(epoch_index, "MIN_CACHED_DOCUMENTS", 2000)
    return open_data_set(shutil.copytree(made, tmp_path / "data")).split("train")


@contextmanager
def no_building():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochIndex, "_build", None)
        yield


def built(shards, seed=7, epoch=0):
    return EpochIndex(shards.lengths, seed, epoch).starts


def test_the_index_is_built_once_and_read_from_its_file_afterwards(shards):
    first = open_index(shards, 7, 0)
    with no_building():
        again = open_index(shards, 7, 0)
    assert np.array_equal(first.starts, again.starts)
    assert again.starts.dtype == np.int64
    assert again.block_at(5000).ids.tolist() == first.block_at(5000).ids.tolist()


def test_the_index_of_a_small_data_set_is_not_cached(shards, monkeypatch):
    monkeypatch.setattr(epoch_index, "MIN_CACHED_DOCUMENTS", 100_000)
    open_index(shards, 7, 0)
    assert not (shards.folder / epoch_index.INDEX_FOLDER).exists()


@pytest.mark.parametrize("place", [0, 8, 16, 24, 32, 40, 48, 56, 64, 79, -1])
def test_a_flipped_byte_is_noticed_and_the_file_is_written_again(shards, caplog, place):
    open_index(shards, 7, 0)
    path = index_path(shards, 7, 0)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[place] ^= 1
    path.write_bytes(broken)
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))
    assert "damaged or of other data; it is built again" in caplog.text
    assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 96, b"\x93NUMPY" * 99])
def test_a_file_that_is_no_index_is_noticed(shards, content):
    path = index_path(shards, 7, 0)
    path.parent.mkdir()
    path.write_bytes(content)
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))


def forge(shards, change):
    """Change the positions in the file of an index and put a right digest below them."""
    open_index(shards, 7, 0)
    path = index_path(shards, 7, 0)
    words = np.fromfile(path, "<u8")[:-1]
    change(words[-4:])  # the positions: 0, 1,024 documents, 2,048 documents, all
    path.write_bytes(np.append(words, epoch_index._digest(words)).astype("<u8").tobytes())
    return path


def same_start_twice(starts):
    starts[1] = starts[2]


def backwards(starts):
    starts[1:3] = starts[2:0:-1]


def beyond_the_end(starts):
    starts[2] = 2**62


def no_start(starts):
    starts[0] = 5


def no_end(starts):
    starts[3] -= 1


@pytest.mark.fault("D10", injected="positions of an index changed, its digest made to fit")
@pytest.mark.parametrize("change", [same_start_twice, backwards, beyond_the_end, no_start, no_end])
def test_impossible_positions_with_a_right_digest_are_not_used(shards, caplog, change):
    forge(shards, change)
    found = TrainingStream(shards, 7).read(0, shards.tokens)
    assert np.array_equal(
        found, TrainingStream(shards, 7, stored_indexes=False).read(0, len(found))
    )
    assert "damaged or of other data; it is built again" in caplog.text


@pytest.mark.fault(
    "D10", injected="a position of an index moved by one token, its digest made to fit"
)
def test_possible_positions_that_do_not_fit_the_lengths_are_not_read_from(shards, caplog):
    forge(shards, lambda starts: starts.__setitem__(1, starts[1] + 1))
    found = TrainingStream(shards, 7).read(0, shards.tokens)
    assert np.array_equal(
        found, TrainingStream(shards, 7, stored_indexes=False).read(0, len(found))
    )
    assert "a stored index does not fit the data set; it is built again" in caplog.text


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_what_is_no_file_of_the_right_size_is_not_opened(shards, kind):
    path = index_path(shards, 7, 0)
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)  # which blocks whoever opens it
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))


def test_a_proof_of_the_order_reads_no_stored_index(shards):
    stream = TrainingStream(shards, 7, stored_indexes=False)
    stream.read(0, 2 * shards.tokens)
    assert not (shards.folder / epoch_index.INDEX_FOLDER).exists()


@pytest.mark.parametrize(("seed", "epoch"), [(8, 0), (7, 1)])
def test_a_valid_index_of_another_seed_or_epoch_is_noticed(shards, seed, epoch):
    open_index(shards, seed, epoch)
    index_path(shards, seed, epoch).rename(index_path(shards, 7, 0))
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))


def test_an_index_of_other_data_is_noticed(shards, tmp_path):
    lengths = np.random.default_rng(4).integers(1, 6, 2500).tolist()
    other = tiny_data_set(tmp_path / "other", lengths=lengths, val_fraction=0).split("train")
    open_index(other, 7, 0)
    assert index_path(other, 7, 0).name != index_path(shards, 7, 0).name
    index_path(shards, 7, 0).parent.mkdir()
    index_path(other, 7, 0).rename(index_path(shards, 7, 0))
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))


def test_a_folder_that_cannot_be_written_costs_only_the_building(shards):
    (shards.folder / epoch_index.INDEX_FOLDER).write_text("in the way")
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))
    assert len(TrainingStream(shards, 7).read(0, 100)) == 100


def test_a_full_disk_costs_only_the_building_and_leaves_no_file(shards, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.atomic.sync_file", full)
    assert np.array_equal(open_index(shards, 7, 0).starts, built(shards))
    assert list((shards.folder / epoch_index.INDEX_FOLDER).iterdir()) == []


def open_in_a_process(folder, start):
    epoch_index.MIN_CACHED_DOCUMENTS = 2000
    shards = open_data_set(folder).split("train")
    start.wait()
    for epoch in range(20):
        starts = open_index(shards, 7, epoch).starts
        assert np.array_equal(starts, EpochIndex(shards.lengths, 7, epoch).starts)


def test_ranks_that_write_at_once_do_not_disturb_each_other(shards):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Event()
    arguments = (shards.folder, start)
    ranks = [spawn.Process(target=open_in_a_process, args=arguments) for _ in range(4)]
    for rank in ranks:
        rank.start()
    start.set()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    names = {path.name for path in (shards.folder / epoch_index.INDEX_FOLDER).iterdir()}
    assert names == {index_path(shards, 7, epoch).name for epoch in range(20)}
    with no_building():
        open_index(shards, 7, 19)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_next_index_is_built_while_this_epoch_is_still_read(shards):
    stream = TrainingStream(shards, 7)
    stream.read(0, shards.tokens // 2)
    assert not index_path(shards, 7, 1).exists()
    stream.read(shards.tokens // 2 + 100, 10)
    wait_until(index_path(shards, 7, 1).exists)
    wait_until(lambda: stream._indices[1].done())
    with no_building():
        assert len(stream.read(shards.tokens - 5, 10)) == 10


def test_a_slow_next_index_never_makes_the_reader_of_this_epoch_wait(shards, monkeypatch):
    finish, real = Event(), order.open_index

    def slow(shards, seed, epoch):
        assert epoch == 0 or finish.wait(20)
        return real(shards, seed, epoch)

    monkeypatch.setattr(order, "open_index", slow)
    stream, expected = TrainingStream(shards, 7), TrainingStream(shards, 7)
    found = stream.read(0, shards.tokens)  # to the epoch's end, with the next one hanging
    wait_until(lambda: 1 in stream._indices)
    assert not stream._indices[1].done()
    finish.set()
    assert np.array_equal(found, expected.read(0, shards.tokens))
    assert np.array_equal(stream.read(shards.tokens, 50), expected.read(shards.tokens, 50))


def test_a_failed_building_raises_and_is_tried_again(shards, monkeypatch):
    real = order.open_index

    def fails(*_):
        raise MemoryError("too much at once")

    stream = TrainingStream(shards, 7)
    monkeypatch.setattr(order, "open_index", fails)
    with pytest.raises(MemoryError):
        stream.read(0, 10)
    monkeypatch.setattr(order, "open_index", real)
    assert len(stream.read(0, 10)) == 10


def test_only_the_newest_indices_are_kept(shards):
    stream = TrainingStream(shards, 7)
    for epoch in range(10):
        stream.index(epoch)
    assert list(stream._indices) == [7, 8, 9]


def test_a_document_is_where_the_index_says(shards):
    index = EpochIndex(shards.lengths, 7, 3)
    stream = TrainingStream(shards, 7)
    for document in (0, 1, 1023, 1024, 2499):
        start = 3 * shards.tokens + index.position_of(document)
        found = stream.read(start, int(shards.lengths[document]))
        assert np.array_equal(found, shards.read_document(document))
