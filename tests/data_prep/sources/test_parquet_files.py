"""Parquet files: every type that can hold text, nested columns, damaged pages and rows."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.file_source import file_source
from data_prep.sources.records import BadRecord
from tests.data_prep.stories import STORIES, prepared, texts_of

TEXTS = ["one", "two", None, "one", "Привет"]
STRUCTS = [{"text": text, "deep": {"body": text}} if text else None for text in TEXTS]
TEXTUAL = {
    "category": pa.array(TEXTS).dictionary_encode(),
    "category of large": pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    "category of bytes": pa.array(TEXTS, pa.binary()).dictionary_encode(),
    "pandas category": pa.Array.from_pandas(pd.Categorical(TEXTS)),
    "large_string": pa.array(TEXTS, pa.large_string()),
    "string_view": pa.array(TEXTS, pa.string_view()),
    "binary": pa.array(TEXTS, pa.binary()),
    "large_binary": pa.array(TEXTS, pa.large_binary()),
    "binary_view": pa.array(TEXTS, pa.binary_view()),
}


@pytest.mark.parametrize("kind", TEXTUAL)
@pytest.mark.parametrize("dictionary", [False, True])
def test_every_kind_of_text_is_read(tmp_path, kind, dictionary):
    table = pa.table({"text": TEXTUAL[kind]})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=dictionary, row_group_size=2)
    data = prepared(tmp_path, "a.parquet", shard_tokens=1)
    assert texts_of(data) == [text for text in TEXTS if text]
    assert data.manifest.skipped_empty == 1


def test_json_and_a_file_of_nulls_only_are_read(tmp_path):
    storage = pa.array(['{"a": 1}', None])
    pq.write_table(
        pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), storage)}),
        tmp_path / "a.parquet",
    )
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "b.parquet")
    data = prepared(tmp_path, "a.parquet", "b.parquet")
    assert texts_of(data) == ['{"a": 1}']
    assert data.manifest.skipped_empty == 4


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"meta": STRUCTS}, "meta.text"),
        ({"meta": STRUCTS}, "meta.deep.body"),
        ({"meta.text": TEXTS, "meta": pa.array([{"text": "other"}] * 5)}, "meta.text"),
        ({"meta": pa.array([{"text": "other"}] * 5), "meta.text": TEXTS}, "meta.text"),
        ({"a.b": STRUCTS}, "a.b.text"),
    ],
)
def test_a_column_inside_a_struct_is_named_with_dots(tmp_path, columns, key):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert texts_of(prepared(tmp_path, "a.parquet", text_key=key)) == [t for t in TEXTS if t]


@pytest.mark.parametrize(
    ("columns", "key", "message"),
    [
        ({"text": [1], "body": ["x"]}, "text", r"has int64 in .* --text-key \(it has \['body'\]\)"),
        ({"text": [["x"]]}, "text", "has list.* in .* a column of its own, one text a row"),
        ({"text": [{"a": "x"}]}, "text", r"has struct.* --text-key \(it has \['text.a'\]\)"),
        ({"m": [[{"text": "x"}]]}, "m.text", "has list.* column of its own"),
        ({"m": [{"body": "x"}]}, "text", r"no column 'text' \(it has \['m.body'\]\); name"),
        ({"text": [1]}, "text", r"\(it has none\)"),
    ],
)
def test_a_column_that_holds_no_text_is_named_with_the_cure(tmp_path, columns, key, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"a\.parquet .*{message}"):
        prepared(tmp_path, "a.parquet", text_key=key)


@pytest.mark.parametrize(("value", "key"), [("x", "text"), ({"t": "x"}, "text.t")])
def test_two_columns_of_one_name_are_an_error(tmp_path, value, key):
    table = pa.Table.from_arrays([pa.array([value])] * 2, names=["text"] * 2)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet has 2 columns 'text', .*write the file again"
    ):
        prepared(tmp_path, "a.parquet", text_key=key)


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_a_row_that_is_not_utf8_is_one_bad_record_counted_in_the_file(tmp_path, kind):
    texts = [b"fine %d" % number for number in range(3000)]
    texts[2500] = b"caf\xe9"
    column = pa.array(texts, pa.binary()).view(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=1200)
    source = file_source([str(tmp_path / "a.parquet")])
    records = [record for unit in source.plan(10) for record in source.records(unit)]
    (bad,) = [record for record in records if isinstance(record, BadRecord)]
    assert (len(records), bad.row, records.index(bad)) == (3000, 2500, 2500)
    assert "row 2500 (counted from 0): it is not UTF-8 at byte 3" in str(bad)


@pytest.mark.fault("D2", injected="one byte of a parquet page flipped, the file has page checksums")
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_flipped_byte_in_a_page_with_a_checksum_is_found(tmp_path, version):
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"text": STORIES}),
        buffer,
        row_group_size=20,
        compression="none",
        use_dictionary=False,
        data_page_version=version,
        write_page_checksum=True,
        write_statistics=False,
    )
    content = bytearray(buffer.getvalue())
    content[content.index(STORIES[30].encode()) + 5] ^= 1
    (tmp_path / "a.parquet").write_bytes(content)
    source = file_source([str(tmp_path / "a.parquet")])
    records = [record for unit in source.plan(10**9) for record in source.records(unit)]
    bad = [record for record in records if isinstance(record, BadRecord)]
    assert [record.row for record in bad] == list(range(20, 40))
    assert "row group 1 cannot be read" in str(bad[0])
    texts = [getattr(record, "text", b"").decode() for record in records]
    assert texts == [*STORIES[:20], *[""] * 20, *STORIES[40:]]
