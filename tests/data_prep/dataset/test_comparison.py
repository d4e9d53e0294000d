"""Files compared with the manifest as the disk holds them, not as the page cache does."""

import os

import pytest

from data_prep.dataset.comparison import differing_files
from tests.data_sets import tiny_data_set


@pytest.fixture
def data(tmp_path):
    return tiny_data_set(tmp_path / "data", documents=30)


def files(data):
    return [file for shard in data.manifest.train.shards for file in shard.files().items()]


def test_an_undamaged_data_set_has_no_differing_file(data):
    assert differing_files(data, files(data), threads=2) == []


def test_every_differing_file_is_named(data):
    names = ("train_000000.npy", "train_000001.source.npy")
    for name in names:
        with (data.folder / name).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x07")
    found = differing_files(data, files(data), threads=2)
    assert len(found) == 2
    assert all(name in sentence for name, sentence in zip(names, found, strict=True))


@pytest.mark.fault("D10", injected="a page cache that differs from the disk, then verify.py")
def test_memory_that_held_other_bytes_than_the_disk_is_told(data, monkeypatch):
    real, readings = os.preadv, []

    def preadv(descriptor, buffers, position):
        got = real(descriptor, buffers, position)
        readings.append(got)
        if len(readings) == 1:  # of the page cache
            buffers[0][0] ^= 1
        return got

    monkeypatch.setattr(os, "preadv", preadv)
    (sentence,) = differing_files(data, files(data)[:1], threads=1)
    assert "train_000000.npy is right on the disk, but this machine's memory held other" in sentence
