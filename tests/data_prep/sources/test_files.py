"""Sources: every file format is read, every bad input is named with its place."""

import gzip
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.byte_streams import Content
from data_prep.sources.file_source import file_source
from data_prep.sources.parquet_files import ParquetFormat
from data_prep.sources.python_docs import PythonDocsSource
from data_prep.sources.records import BadRecord
from data_prep.sources.splitting import Separator, split_content
from tests.data_prep.stories import STORIES, prepared, texts_of, write_as, write_lines


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("shard_tokens", [300, 10**8])
def test_every_format_gives_the_same_documents_for_any_shard_size(tmp_path, kind, shard_tokens):
    path = write_as(kind, tmp_path, STORIES)
    data = prepared(tmp_path, path.name, shard_tokens=shard_tokens)
    assert texts_of(data) == STORIES
    assert data.manifest.train.text_bytes == sum(len(text.encode()) for text in STORIES)
    assert (len(data.manifest.train.shards) > 1) == (shard_tokens < 10**8)


@pytest.mark.fault("D4", injected="random texts, all of Unicode")
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=30), shard_tokens=st.integers(1, 60)
)
@settings(max_examples=8, deadline=None)
def test_any_texts_come_back_whole(tmp_path_factory, texts, shard_tokens):
    folder = tmp_path_factory.mktemp("any")
    texts = ["first", *texts]
    write_lines(folder / "a.jsonl", texts)
    data = prepared(folder, "a.jsonl", shard_tokens=shard_tokens)
    assert texts_of(data) == [text for text in texts if text]
    assert data.manifest.skipped_empty == texts.count("")


def test_many_files_are_taken_in_the_order_of_their_names(tmp_path):
    for name, texts in (("b/2.jsonl", ["c"]), ("b/10.txt", ["b"]), ("a.jsonl", ["a"])):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(tmp_path / "in" / name, texts)
    (tmp_path / "in" / "b" / "10.txt").write_text("b")
    data = prepared(tmp_path, "in")
    assert texts_of(data) == ["a", "b", "c"]
    assert [file.name for file in data.manifest.source.files] == [
        "a.jsonl",
        "b/10.txt",
        "b/2.jsonl",
    ]


def test_a_glob_finds_files_and_none_is_taken_twice(tmp_path):
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", [name])
    assert texts_of(prepared(tmp_path, "*.jsonl", "a.jsonl")) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"one", ["one"]),
        (b"one\n", ["one\n"]),
        (b"one\n<|endoftext|>\ntwo\n<|endoftext|>\n", ["one", "two"]),
        (b"one\r\n<|endoftext|>\r\ntwo", ["one", "two"]),
        (b"one<|endoftext|>two", ["one", "two"]),
        (b"\none\n\n<|endoftext|>\n\ntwo\n", ["\none\n", "\ntwo\n"]),
        (b"<|endoftext|>one<|endoftext|><|endoftext|>two", ["one", "two"]),
        (b"\xef\xbb\xbfone", ["one"]),
    ],
)
def test_a_newline_beside_a_separator_is_no_text(tmp_path, content, documents):
    (tmp_path / "a.txt").write_bytes(content)
    assert texts_of(prepared(tmp_path, "a.txt")) == documents


def test_another_separator_and_another_text_key_can_be_given(tmp_path):
    (tmp_path / "a.txt").write_text("one\n---\ntwo")
    write_lines(tmp_path / "b.jsonl", ["three"], key="body")
    data = prepared(tmp_path, "a.txt", "b.jsonl", separator="---", text_key="body")
    assert texts_of(data) == ["one", "two", "three"]


def test_a_lone_surrogate_becomes_a_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    data = prepared(tmp_path, "a.jsonl")
    assert texts_of(data) == ["a\ufffdb"]
    assert data.manifest.train.text_bytes == 5


@pytest.mark.long
def test_python_documentation_is_a_corpus_of_prose(tmp_path):
    data = prepare(PythonDocsSource(), tmp_path / "docs", PrepareOptions(workers=1))
    assert data.manifest.train.documents > 300
    assert data.manifest.train.tokens > 400_000
    assert data.manifest.train.unigram_entropy_nats > 5
    assert any("while" in text and "Module" not in text for text in texts_of(data)[:40])


@pytest.mark.fault("D4", injected="bytes that are no UTF-8")
def test_text_that_is_not_utf8_names_file_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good<|endoftext|>\ncaf\xe9")
    with pytest.raises(
        ValueError, match=r"a\.txt, document 2 \(byte 21\): it is not UTF-8; .*iconv"
    ):
        prepared(tmp_path, "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xe9"}', "is not UTF-8, perhaps latin1"),
        (b'{"text": ', "is not JSON"),
        (b'{"body": "x"}', r"no key 'text' \(it has \['body'\]\); name it with --text-key"),
        (b'["x"]', "has a list"),
        (b'{"text": 3}', "holds a number under 'text'"),
        (b'{"text": "a", "x": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deep"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 \(byte 14\): it .*" + message):
        prepared(tmp_path, "a.jsonl")


def test_records_continue_behind_a_bad_one(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text": \n\n{"text": "y"}\n')
    (tmp_path / "b.txt").write_bytes(b"\xe9<|endoftext|>z")
    source = file_source([str(tmp_path)])
    found = [record for unit in source.plan(1) for record in source.records(unit)]
    assert [getattr(record, "text", None) for record in found] == [
        b"x",
        None,
        b"",
        b"y",
        None,
        b"z",
    ]
    bad = [record for record in found if isinstance(record, BadRecord)]
    assert [(b.file, b.row, b.place) for b in bad] == [
        (0, 1, "line 2 (byte 14)"),
        (1, 0, "document 1 (byte 0)"),
    ]
    assert str(pickle.loads(pickle.dumps(bad[1]))) == str(bad[1])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [("body", ["x"], "no column 'text'"), ("text", [1], "int64 in column 'text'")],
)
def test_a_parquet_file_without_text_is_an_error(tmp_path, column, values, message):
    pq.write_table(pa.table({column: values}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, "a.parquet")


@pytest.mark.parametrize("kind", [".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_file_is_an_error(tmp_path, kind):
    path = write_as(kind, tmp_path, STORIES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"source.* again"):
        prepared(tmp_path, path.name)


@pytest.mark.parametrize("name", ["nothing", "*.txt", "", "image.png"])
def test_a_place_without_readable_files_is_an_error(tmp_path, name):
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.txt, \.jsonl, \.parquet|there is no .*nothing; give"):
        file_source([str(tmp_path / name)])


@pytest.mark.parametrize(("name", "packed"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)])
def test_a_file_that_became_shorter_after_planning_is_named(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed(b'{"text": "abc"}\n' * 1000))
    source = file_source([str(tmp_path / name)])
    units = source.plan(4000)
    (tmp_path / name).write_bytes(packed(b'{"text": "abc"}\n' * 500))
    middle = next(unit for unit in units if unit.spans[0].start < 500 * 16 < unit.spans[0].stop)
    for unit in (middle, units[-1]):
        with pytest.raises(ValueError, match=r"a\.jsonl\S* is shorter than .*: start again"):
            list(source.documents(unit))


def test_a_piece_of_a_plain_file_is_read_without_the_bytes_before_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 5_000_000 + b"\nthe end")
    content = Content(tmp_path / "a.txt")
    with content.open(5_000_001) as stream:
        assert (stream.read(7), stream.read(1)) == (b"the end", b"")
    parts = split_content(content, Separator(b"\n"), 5_000_001, 5_000_008)
    assert list(parts) == [(b"the end", 0)]


def test_a_large_row_group_is_not_completely_in_memory(tmp_path):
    texts = [os.urandom(400).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    held = pa.default_memory_pool().bytes_allocated
    before = held()
    found = ParquetFormat("text", "").texts(Content(tmp_path / "a.parquet"), 0, 1, 0)
    assert next(found) == texts[0].encode()
    assert held() - before < 8_000_000  # the row group's column takes 8 MB in the file
    assert sum(1 for _ in found) == 19_999
