"""A compressed file that several units share is unpacked in one pass, ahead of the workers."""

import shutil
from collections import namedtuple

import pytest

from data_prep.hub.supply import LocalFiles
from data_prep.preparation import unpacking
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.preparation.split import SplitRule
from data_prep.preparation.unit import UnitWork
from data_prep.preparation.unpacking import unpacked_ahead, with_unpacked_files
from data_prep.preparation.work_folder import with_keys
from data_prep.sources import byte_streams
from data_prep.sources.file_source import file_source
from data_prep.sources.records import BadRecord
from data_prep.tokenizer import gpt2_tokenizer
from tests.data_prep.stories import STORIES, folder_bytes, write_as

WORKERS = 2


def planned(folder, kind, cut=None, unit_bytes=1000):
    path = write_as(kind, folder, STORIES * 5)
    path.write_bytes(path.read_bytes()[:cut])
    source = file_source([str(path)])
    (folder / "units").mkdir()
    work = UnitWork(source, SplitRule("hash"), folder / "units")
    return work, with_keys(source.plan(unit_bytes), source, work.rule, gpt2_tokenizer())


def read(work, todo):
    """All records in order, as workers would read them, and how many folders were there at most."""
    records, most = [], 0
    with unpacked_ahead(work, todo, LocalFiles(), WORKERS) as provider:
        for unit in todo:
            provider.wait(unit)
            assert provider.ready(unit)
            most = max(most, len(list(work.folder.iterdir())))
            records += with_unpacked_files(work, unit).source.records(unit)
            provider.finished(unit)
    assert list(work.folder.iterdir()) == []
    return [getattr(record, "text", record) for record in records], most


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_is_opened_once_for_all_units(tmp_path, monkeypatch, kind):
    work, todo = planned(tmp_path, kind)
    opened = []
    real = byte_streams._CompressedStream
    monkeypatch.setattr(byte_streams, "_CompressedStream", lambda *w: opened.append(w) or real(*w))
    texts, most = read(work, todo)
    assert texts == [text.encode() for text in STORIES * 5]
    assert len(opened) == 1
    assert most <= WORKERS + unpacking._AHEAD < len(todo)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_other_files_are_not_copied(tmp_path, kind):
    work, todo = planned(tmp_path, kind)
    assert read(work, todo) == ([text.encode() for text in STORIES * 5], 0)


def test_a_file_of_one_unit_is_read_by_its_worker(tmp_path):
    work, todo = planned(tmp_path, ".jsonl.gz", unit_bytes=10**9)
    assert read(work, todo)[1] == 0


def test_without_room_the_workers_read_the_file_themselves(tmp_path, monkeypatch):
    work, todo = planned(tmp_path, ".jsonl.gz")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000))
    assert read(work, todo)[0] == [text.encode() for text in STORIES * 5]


@pytest.mark.fault("D2", injected="a compressed file of several units without its end")
def test_the_record_in_which_a_file_ends_is_the_same_bad_one(tmp_path):
    work, todo = planned(tmp_path, ".jsonl.gz", cut=-400)
    *good, bad = read(work, todo)[0]
    assert isinstance(bad, BadRecord)
    assert good == [text.encode() for text in STORIES * 5][: len(good)]
    direct = [record for unit in todo for record in work.source.records(unit)]
    assert str(direct[-1]) == str(bad)
    assert len(direct) == len(good) + 1


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_a_compressed_file_gives_the_shards_of_the_plain_one(tmp_path, kind):
    write_as(kind, tmp_path, STORIES)  # beside it, the same lines in source.jsonl.plain
    (tmp_path / "plain").mkdir()
    (tmp_path / "source.jsonl.plain").rename(tmp_path / "plain" / "source.jsonl")
    options = PrepareOptions(workers=WORKERS, val_tokens=0, shard_tokens=300)
    shards = []
    for source in (tmp_path / f"source{kind}", tmp_path / "plain" / "source.jsonl"):
        out = tmp_path / f"out_of_{source.name}"
        prepare(file_source([str(source)]), out, options)
        found = folder_bytes(out)
        shards.append({name: found[name] for name in found if name.endswith(".npy")})
    assert shards[0] == shards[1]
    assert len(shards[0]) > 12
