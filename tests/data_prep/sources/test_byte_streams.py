"""Compressed files: every way of packing, damage, and reading one part after another."""

import bz2
import gzip
import json
import lzma
import random
from functools import partial

import pytest
import zstandard

from data_prep.sources import byte_streams
from data_prep.sources.byte_streams import Content, TruncatedFile
from data_prep.sources.file_source import file_source
from data_prep.sources.records import BadRecord
from tests.data_prep.stories import STORIES, write_as

PACKED = {
    "gz": gzip.compress,
    "bz2": partial(bz2.compress, compresslevel=1),
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXT = random.Random(0).randbytes(300_000) + b"words " * 100_000


def read(path, start=0):
    found = b""
    with Content(path).open(start) as stream:
        while more := stream.read(1 << 20):
            found += more
    return found


@pytest.mark.parametrize("kind", PACKED)
def test_members_one_behind_another_are_one_content(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(PACKED[kind](TEXT) + PACKED[kind](b"") + PACKED[kind](b"more"))
    assert read(path) == TEXT + b"more"
    assert read(path, 123_456) == TEXT[123_456:] + b"more"


@pytest.mark.parametrize("kind", ["gz", "xz"])
def test_zeros_behind_a_member_are_padding(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(PACKED[kind](b"one") + bytes(8) + PACKED[kind](b"two") + bytes(512))
    assert read(path) == b"onetwo"


@pytest.mark.fault(
    "D2", injected="a compressed file with one flipped bit, or another file behind it"
)
@pytest.mark.parametrize("kind", PACKED)
def test_damage_is_never_text(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    packed = PACKED[kind](TEXT)
    for damaged in (packed + b"garbage", packed[:2000] + bytes([packed[2000] ^ 8]) + packed[2001:]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=rf"a\.{kind} cannot be unpacked \(.*\); copy or make"
        ) as raised:
            read(path)
        assert not isinstance(raised.value, TruncatedFile)
    path.write_bytes(b"")
    with pytest.raises(TruncatedFile, match="incomplete"):
        read(path)


@pytest.mark.fault("D2", injected="a compressed file without its end")
@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_a_file_without_its_end_costs_one_record(tmp_path, form, kind):
    stories = [f"{number} {random.Random(number).randbytes(3000).hex()}" for number in range(99)]
    lines = [json.dumps({"text": story}) for story in stories]
    text = "\n".join(lines) if form == "jsonl" else "\n<|endoftext|>\n".join(stories)
    path = tmp_path / f"source.{form}.{kind}"
    packed = PACKED[kind](text.encode())
    path.write_bytes(packed[: len(packed) * 9 // 10])
    source = file_source([str(path)])
    for unit_bytes in (1, 100_000, 10**9):
        units = source.plan(unit_bytes)
        records = [record for unit in units for record in source.records(unit)]
        assert sum(unit.documents for unit in units) == len(records)
        *good, bad = records
        assert isinstance(bad, BadRecord)
        assert "and what follows: the file" in str(bad)
        assert [getattr(record, "text", b"").decode() for record in good] == stories[: len(good)]
        assert len(good) > 50


def test_a_window_of_zstd_that_is_too_long_says_how_to_unpack(tmp_path):
    window = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=window).compressobj()
    (tmp_path / "a.zst").write_bytes(packer.compress(TEXT) + packer.flush())
    with pytest.raises(ValueError, match=r"`zstd -d --long=31 a\.zst` and give that file"):
        read(tmp_path / "a.zst")


def test_parts_in_order_are_read_in_one_pass(tmp_path, monkeypatch):
    opened = []
    real = byte_streams._CompressedStream
    monkeypatch.setattr(byte_streams, "_CompressedStream", lambda *w: opened.append(w) or real(*w))
    path = write_as(".jsonl.gz", tmp_path, STORIES)
    source = file_source([str(path)])
    units = source.plan(1000)
    opened.clear()
    texts = [doc.text.decode() for unit in units for doc in source.documents(unit)]
    assert (texts, len(opened)) == (STORIES, 1)
    next(source.documents(units[2]))  # not to its end
    next(source.documents(units[5]))
    assert len(opened) == 2  # back to the start once
    assert [doc.text.decode() for doc in source.documents(units[0])] == texts[: units[0].documents]
    assert len(opened) == 3


def test_a_part_that_is_unpacked_already_is_read_there(tmp_path):
    (tmp_path / "part").write_bytes(b"two")
    with Content(tmp_path / "absent.gz", tmp_path / "part", 100).open(101) as stream:
        assert stream.read(9) == b"wo"
