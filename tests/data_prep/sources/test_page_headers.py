"""Headers of parquet pages: damage is found, and every sound file is read."""

import io
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sources.byte_streams import Content
from data_prep.sources.page_headers import damaged_header
from data_prep.sources.parquet_files import ParquetFormat

WAYS = [
    {"use_dictionary": False, "data_page_version": "1.0"},
    {"use_dictionary": False, "data_page_version": "2.0"},
    {"use_dictionary": True, "data_page_version": "1.0"},
]


def written(texts, kind=None, **way) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"n": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})
    way = {"write_page_checksum": True, "data_page_size": 64, "write_batch_size": 2, **way}
    pq.write_table(table, buffer, **way)
    return buffer.getvalue()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [pa.string(), pa.binary()])
@given(texts=st.lists(st.none() | st.text(max_size=90), min_size=1, max_size=40))
def test_every_sound_file_is_read(tmp_path_factory, way, kind, texts):
    path = tmp_path_factory.mktemp("sound") / "a.parquet"
    path.write_bytes(written(texts, kind, compression="none", **way))
    found = list(ParquetFormat("text", "").texts(Content(path), 0, 1, 0))
    assert found == [None if text is None else text.encode() for text in texts]


def test_a_sound_file_with_empty_texts_is_read_though_its_statistics_are_not_right(tmp_path):
    # Arrow's writer keeps a bound of the page before in about one of a hundred of these files.
    long = "c2b41bc3a1c3b7c3b8f18b9986c2ac40c3a6c2b3f1938e8e47f39aa0abc2"
    long += "a4c29df2afa9b9c2b526c3b156c3bec285f18d9493"
    short = "3079761ac3b0f1819cbbc3ae3c"
    texts = [bytes.fromhex(long).decode(), None, bytes.fromhex(short).decode(), None, ""]
    for number in range(600):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(written(texts, compression="none", use_dictionary=False))
        found = list(ParquetFormat("text", "").texts(Content(path), 0, 1, 0))
        assert found == [None if text is None else text.encode() for text in texts]


@pytest.mark.fault("D2", injected="one byte of the statistics in the header of a parquet page")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [0, 1])
def test_changed_statistics_of_a_page_are_damage(tmp_path, way, number):
    content = bytearray(written(["plain words one", "plain words two"], compression="none", **way))
    place = [found.start() for found in re.finditer(b"plain words", content)]
    if way["use_dictionary"]:
        place = place[2:]  # the dictionary, with a checksum, comes first
    content[place[number]] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        column = file.metadata.row_group(0).column(1)
    assert "does not fit the file's footer" in damaged_header(tmp_path / "a.parquet", column)


def test_without_checksums_nothing_is_looked_at(tmp_path):
    content = written(["one", "two"], compression="none", write_page_checksum=False)
    (tmp_path / "a.parquet").write_bytes(content.replace(b"two", b"zwo"))
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        assert damaged_header(tmp_path / "a.parquet", file.metadata.row_group(0).column(1)) == ""


@pytest.mark.fault(
    "D2", injected="every byte of the pages of a parquet file with checksums flipped"
)
def test_no_flipped_byte_of_a_page_gives_another_text(tmp_path):
    texts = [f"w{number} plain words" for number in range(9)]
    content = written(texts, compression="zstd", data_page_size=1 << 20)
    path = tmp_path / "a.parquet"
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(4, footer):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        found = list(ParquetFormat("text", "").texts(Content(path), 0, 1, 0))
        assert len(found) == len(texts)
        good = [pair for pair in zip(found, texts, strict=True) if isinstance(pair[0], bytes)]
        assert all(text == expected.encode() for text, expected in good), place
