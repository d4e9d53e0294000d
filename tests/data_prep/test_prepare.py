"""Preparation: every source format, every split, the same bytes always, every bad input named."""

import base64
import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dataset.manifest import Duplicates
from data_prep.dataset.shards import DataSet, check_data_set, open_data_set
from data_prep.preparation import duplicates, split
from data_prep.preparation import prepare as prepare_file
from data_prep.preparation import unit as unit_file
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare, prepare_part
from data_prep.preparation.split import text_hash
from data_prep.preparation.work_folder import Part, exclusive_lock, part_lock
from data_prep.sources import readers
from data_prep.sources.file_source import file_source
from data_prep.sources.python_docs import EmbeddedSource
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from storage.atomic import save_array

SHARED = Path(__file__).parents[3] / "shared" / "data"
WORDS = [
    "a",
    "river",
    "of",
    "light",
    "runs",
    "under",
    "old",
    "stone",
    "while",
    "birds",
    "wait",
    "for",
    "rain",
    "and",
    "evening",
]


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def story(number: int, words: int = 40) -> str:
    return f"Story {number}. " + " ".join(random.Random(number).choices(WORDS, k=words))


STORIES = [story(number) for number in range(60)]


def texts_of(data: DataSet, split: str = "train") -> list[str]:
    """The documents of a split, each without the end-of-text that opens it."""
    tokens, tokenizer = data.split(split), data.tokenizer()
    documents = [tokens.read_document(index).tolist() for index in range(tokens.documents)]
    assert all(document[0] == tokenizer.end_of_text for document in documents)
    return [tokenizer.decode(document[1:]) for document in documents]


def prepared(folder: Path, *names: str, **options) -> DataSet:
    """All text of the named files as training data."""
    reading = {key: options.pop(key) for key in ("text_key", "separator") if key in options}
    source = file_source([str(folder / name) for name in names], **reading)
    data = prepare(
        source, folder / "out", PrepareOptions(workers=1, **{"val_tokens": 0, **options})
    )
    check_data_set(data, "full")
    return data


def write_lines(path: Path, texts: list, key: str = "text") -> None:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))


def folder_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_as(kind: str, path: Path, texts: list[str]) -> Path:
    path = path / f"source{kind}"
    if kind == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
        return path
    write_lines(path.with_suffix(".plain"), texts)
    plain = path.with_suffix(".plain").read_bytes()
    if kind == ".txt":
        plain = "\n<|endoftext|>\n".join(texts).encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(compress.get(path.suffix, bytes)(plain))
    return path


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


def test_the_source_index_leads_back_to_file_and_row(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["a0", "", "a2"])
    write_lines(tmp_path / "b.jsonl", ["b0", "b1"])
    data = prepared(tmp_path, "a.jsonl", "b.jsonl")
    places = np.load(data.folder / "train_000000.source.npy")
    assert places.tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]


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
def test_a_separator_takes_the_newline_on_either_side(tmp_path, content, documents):
    (tmp_path / "a.txt").write_bytes(content)
    assert texts_of(prepared(tmp_path, "a.txt")) == documents


def test_another_separator_and_another_key_can_be_named(tmp_path):
    (tmp_path / "a.txt").write_text("one\n---\ntwo")
    write_lines(tmp_path / "b.jsonl", ["three"], key="body")
    data = prepared(tmp_path, "a.txt", "b.jsonl", separator="---", text_key="body")
    assert texts_of(data) == ["one", "two", "three"]


def test_empty_documents_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": "x"}\n')
    data = prepared(tmp_path, "a.jsonl")
    assert (data.manifest.skipped_empty, texts_of(data)) == (3, ["x"])


def test_a_document_longer_than_a_shard_stays_whole(tmp_path):
    texts = [story(1, 3000), "short", story(2, 3000)]
    write_lines(tmp_path / "a.jsonl", texts)
    assert texts_of(prepared(tmp_path, "a.jsonl", shard_tokens=100)) == texts


def test_a_lone_surrogate_becomes_a_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    data = prepared(tmp_path, "a.jsonl")
    assert texts_of(data) == ["a\ufffdb"]
    assert data.manifest.train.text_bytes == 5


def test_max_documents_takes_the_first_ones_of_the_whole_source(tmp_path):
    path = write_as(".parquet", tmp_path, STORIES)
    data = prepared(tmp_path, path.name, max_documents=23, shard_tokens=300)
    assert texts_of(data) == STORIES[:23]


def test_validation_by_hash_meets_its_target_and_keeps_copies_on_one_side(tmp_path):
    texts = [story(number) for number in range(1000)]
    copies = [text.upper().replace(" ", "  ") + "!" for text in texts[::2]]
    write_lines(tmp_path / "a.jsonl", texts + copies)
    data = prepared(tmp_path, "a.jsonl", val_tokens=6000)
    train, val = ({text_hash(text) for text in texts_of(data, s)} for s in ("train", "val"))
    assert not train & val
    assert len(train | val) == 1000
    assert 0.6 < data.manifest.val.tokens / 6000 < 1.4


def test_validation_does_not_depend_on_the_order_of_the_source(tmp_path):
    for name, texts in (("a", STORIES), ("b", STORIES[::-1])):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "x.jsonl", texts)
    a, b = (prepared(tmp_path / name, "x.jsonl", val_tokens=900) for name in "ab")
    assert texts_of(a, "val") == texts_of(b, "val")[::-1]


def test_the_text_hash_ignores_case_whitespace_and_punctuation_only():
    assert text_hash("Hello, World") == text_hash("hello\n\tworld!!") == 0x5E644672268C4E6A
    assert len({text_hash(text) for text in ("helloworld", "helloworl", "hellöworld", "")}) == 4


def test_the_first_documents_are_validation_until_the_target_is_reached(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    data = prepared(tmp_path, "a.jsonl", split="first", val_tokens=500, shard_tokens=300)
    val = texts_of(data, "val")
    assert val + texts_of(data) == STORIES
    last = len(gpt2_tokenizer().encode(val[-1])) + 1
    assert data.manifest.val.tokens - last < 500 <= data.manifest.val.tokens


def test_the_tail_of_a_single_document_is_validation(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 10)
    data = prepared(tmp_path, "a.txt", split="tail", val_tokens=None, val_fraction=0.2)
    assert texts_of(data) == ["0123456789" * 8]
    assert texts_of(data, "val") == ["0123456789" * 2]


def test_the_default_validation_is_a_twentieth(tmp_path):
    write_lines(tmp_path / "a.jsonl", [story(number) for number in range(1500)])
    data = prepared(tmp_path, "a.jsonl", val_tokens=None)
    share = data.manifest.val.tokens / (data.manifest.val.tokens + data.manifest.train.tokens)
    assert 0.03 < share < 0.07
    assert data.manifest.split_rule["val_tokens"] > 0


def test_python_documentation_is_a_corpus_of_prose(tmp_path):
    data = prepare(EmbeddedSource(), tmp_path / "docs", PrepareOptions(workers=1))
    assert data.manifest.train.documents > 300
    assert data.manifest.train.tokens > 400_000
    assert data.manifest.train.unigram_entropy_nats > 5
    assert any("while" in text and "Module" not in text for text in texts_of(data)[:40])


def test_two_workers_give_the_bytes_of_one(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    source = file_source([str(tmp_path / "a.jsonl")])
    for workers in (1, 2):
        options = PrepareOptions(workers=workers, shard_tokens=300, val_tokens=400)
        prepare(source, tmp_path / f"out{workers}", options)
    one, two = (folder_bytes(tmp_path / f"out{workers}") for workers in (1, 2))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out1", "out2"]


def test_the_same_files_elsewhere_give_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name / name).mkdir(parents=True)
        write_lines(tmp_path / name / name / "x.jsonl", STORIES)
        prepared(tmp_path / name, name)
    assert folder_bytes(tmp_path / "a" / "out") == folder_bytes(tmp_path / "b" / "out")


def test_a_finished_data_set_is_left_alone(tmp_path, caplog):
    write_lines(tmp_path / "a.jsonl", STORIES)
    first = prepared(tmp_path, "a.jsonl")
    before = (first.folder / "manifest.json").stat()
    with caplog.at_level("INFO"):
        again = prepared(tmp_path, "a.jsonl")
    assert "complete already" in caplog.text
    assert again.fingerprint == first.fingerprint
    assert (first.folder / "manifest.json").stat() == before


def test_another_data_set_at_the_same_place_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    before = prepared(tmp_path, "a.jsonl").fingerprint
    with pytest.raises(ValueError, match=r"holds another data set \(shard_tokens=100000000"):
        prepared(tmp_path, "a.jsonl", shard_tokens=300)
    write_lines(tmp_path / "a.jsonl", STORIES[1:])
    with pytest.raises(ValueError, match="holds another data set"):
        prepared(tmp_path, "a.jsonl")
    assert open_data_set(tmp_path / "out").fingerprint == before


def test_the_same_text_by_another_tokenizer_is_another_data_set(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    prepared(tmp_path, "a.jsonl")
    letters = [base64.b64encode(bytes([i])) + b" %d" % i for i in range(256)]
    letters = Tokenizer("letters", r"(?s:.)", b"\n".join(letters))
    source, options = file_source([str(tmp_path / "a.jsonl")]), PrepareOptions(val_tokens=0)
    with pytest.raises(ValueError, match="holds another data set .tokenizer=gpt2 there"):
        prepare(source, tmp_path / "out", options, letters)
    assert texts_of(prepare(source, tmp_path / "letters", options, letters)) == STORIES


def test_a_folder_of_other_things_is_an_error_and_an_empty_one_is_not(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("do not lose me")
    with pytest.raises(ValueError, match="is no data set"):
        prepared(tmp_path, "a.jsonl")
    (tmp_path / "out" / "thesis.tex").unlink()
    assert prepared(tmp_path, "a.jsonl").manifest.train.documents == 60


@pytest.mark.fault("D7", injected="two preparations of one folder")
def test_a_second_preparer_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    with (
        exclusive_lock(tmp_path / "out.partial"),
        pytest.raises(ValueError, match="another process is preparing"),
    ):
        prepared(tmp_path, "a.jsonl")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.fault("D4", injected="bytes that are no UTF-8")
def test_text_that_is_not_utf8_names_file_and_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good<|endoftext|>\ncaf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 at byte 21; .*iconv"):
        prepared(tmp_path, "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xe9"}', "line at byte 14, is not UTF-8 JSON"),
        (b'{"text": ', "is not UTF-8 JSON"),
        (b'{"body": "x"}', r"no key 'text' \(it has \['body'\]\); name it with --text-key"),
        (b'["x"]', "it has list"),
        (b'{"text": 3}', "holds int under 'text'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line at byte 14.*" + message.split(", ")[-1]):
        prepared(tmp_path, "a.jsonl")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [("body", ["x"], "no column 'text'"), ("text", [1], "int64 in column 'text'")],
)
def test_a_parquet_file_without_text_is_an_error(tmp_path, column, values, message):
    pq.write_table(pa.table({column: values}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, "a.parquet")


@pytest.mark.parametrize("kind", [".parquet", ".jsonl.gz", ".jsonl.zst"])
def test_a_cut_file_is_an_error(tmp_path, kind):
    path = write_as(kind, tmp_path, STORIES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"source.* again"):
        prepared(tmp_path, path.name)


@pytest.mark.parametrize("name", ["nothing", "*.txt", "", "image.png"])
def test_a_place_without_readable_files_is_an_error(tmp_path, name):
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.txt, \.jsonl, \.parquet|there is no .*nothing; give"):
        file_source([str(tmp_path / name)])


def test_a_source_without_documents_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no document"):
        prepared(tmp_path, "a.jsonl")


def test_the_tail_of_two_documents_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    with pytest.raises(ValueError, match=r"the source has 2 documents; use --split hash"):
        prepared(tmp_path, "a.txt", split="tail", val_tokens=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"shard_tokens": -5}, "shard_tokens=-5"),
        ({"max_documents": 0}, "max_documents=0"),
        ({"val_tokens": -1}, "val_tokens=-1"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"split": "tail", "val_tokens": 5}, "use --val-fraction"),
    ],
)
def test_an_impossible_option_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareOptions(**options)


def test_more_validation_than_there_is_text_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    with pytest.raises(ValueError, match=r"val_tokens=1000000 is not less than the about"):
        prepared(tmp_path, "a.jsonl", val_tokens=1_000_000)


def test_a_split_without_documents_is_an_error_and_leaves_nothing(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["only one " * 50])
    with pytest.raises(ValueError, match="no document fell to validation"):
        prepared(tmp_path, "a.jsonl", val_tokens=1)
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(ValueError, match="no document fell to train"):
        prepared(tmp_path, "a.jsonl", val_tokens=1, split="first")


def test_finished_units_are_kept_after_an_error_and_used_by_the_same_plan_only(tmp_path):
    bad = ["x" * 300, *STORIES, 3]
    write_lines(tmp_path / "a.jsonl", bad)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds int"):
            prepared(tmp_path, "a.jsonl", shard_tokens=300)
    assert len(list(tmp_path.glob("out.partial/units/*/unit.json"))) > 5
    with pytest.raises(ValueError, match=r"unfinished work of another .*shard_tokens=300"):
        prepared(tmp_path, "a.jsonl", shard_tokens=400)


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)

    class Shrinking(type(file_source([str(tmp_path)]))):
        def documents(self, unit):
            yield from list(super().documents(unit))[:-1]

    source = file_source([str(tmp_path / "a.jsonl")])
    with pytest.raises(ValueError, match="60 documents here when it was planned and 59 now"):
        prepare(Shrinking(**vars(source)), tmp_path / "out", PrepareOptions(workers=1))


@pytest.mark.parametrize(("name", "packed"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress)])
def test_a_file_that_became_shorter_meanwhile_is_named(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed(b'{"text": "abc"}\n' * 1000))
    source = file_source([str(tmp_path / name)])
    units = source.plan(4000)
    (tmp_path / name).write_bytes(packed(b'{"text": "abc"}\n' * 500))
    middle = next(unit for unit in units if unit.spans[0].start < 500 * 16 < unit.spans[0].stop)
    for unit in (middle, units[-1]):
        with pytest.raises(ValueError, match=r"a\.jsonl\S* is shorter than .*: start again"):
            list(source.documents(unit))


def test_a_piece_of_a_plain_file_is_read_without_what_lies_before_it(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"x" * 5_000_000 + b"\nthe end")
    read = []
    real = readers._read
    monkeypatch.setattr(readers, "_read", lambda *w: read.append(real(*w)) or read[-1])
    parts = list(readers.split_file(tmp_path / "a.txt", b"\n", 5_000_001, 5_000_008))
    assert (parts, read) == ([(b"the end", False)], [b"the end", b""])


def test_a_large_row_group_is_not_held_whole(tmp_path):
    texts = [os.urandom(400).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    held = pa.default_memory_pool().bytes_allocated
    before = held()
    found = readers.Parquet("text", "").texts(tmp_path / "a.parquet", 0, 1)
    assert next(found) == texts[0].encode()
    assert held() - before < 8_000_000  # the row group's column takes 8 MB in the file
    assert sum(1 for _ in found) == 19_999


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.fault("S4", injected="a disk that is full when an array's file is closed")
def test_an_array_that_does_not_fit_the_disk_is_an_error_of_the_disk():
    with pytest.raises(OSError, match="No space left"):
        save_array(Path("/dev/full"), np.arange(4))


def test_a_data_set_that_came_out_damaged_is_not_published(tmp_path, monkeypatch):
    def lossy(path, array):
        save_array(path, array[:-1] if path.name == "train.source.npy" else array)

    write_lines(tmp_path / "a.jsonl", STORIES)
    monkeypatch.setattr(unit_file, "save_array", lossy)
    with pytest.raises(ValueError, match=r"not published .*train_000000\.source.*; check the disk"):
        prepared(tmp_path, "a.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("split", ["hash", "first"])
def test_copies_are_counted_over_all_units(tmp_path, monkeypatch, split):
    exact, other_case = STORIES[::2], [text.upper() for text in STORIES[:9]]
    write_lines(tmp_path / "a.jsonl", [*STORIES, *exact, *other_case, "", ""])
    options = {"split": split, "val_tokens": 500, "shard_tokens": 300}
    data = prepared(tmp_path, "a.jsonl", **options)
    assert data.manifest.duplicates == Duplicates(exact=30, normalised=39)
    monkeypatch.setattr(duplicates, "HASHES_AT_ONCE", 10)
    (tmp_path / "out").rename(tmp_path / "before")
    assert prepared(tmp_path, "a.jsonl", **options).fingerprint == data.fingerprint


def test_what_a_crash_left_beside_a_complete_data_set_is_removed(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    prepared(tmp_path, "a.jsonl")
    (tmp_path / "out.partial" / "units" / "000000").mkdir(parents=True)
    (tmp_path / "out.partial" / "units" / "000000" / "unit.json").write_text("{}")
    prepared(tmp_path, "a.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_the_first_documents_are_tokenized_once_to_find_the_split(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl", [*STORIES, 3])
    calls = []
    real = split.decide_split
    monkeypatch.setattr(prepare_file, "decide_split", lambda *w: calls.append(1) or real(*w))
    for _ in range(2):
        with pytest.raises(ValueError, match="holds int"):
            prepared(tmp_path, "a.jsonl", split="first", val_tokens=500, shard_tokens=300)
    assert calls == [1]


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


def test_parts_run_at_once_but_neither_twice_nor_beside_a_merge(tmp_path):
    partial = tmp_path / "out.partial"
    with part_lock(partial, Part(1, 3)), part_lock(partial, Part(2, 3)):
        with pytest.raises(ValueError, match="preparing"), part_lock(partial, Part(2, 3)):
            pass
        with pytest.raises(ValueError, match="preparing"), exclusive_lock(partial):
            pass
    refused = pytest.raises(ValueError, match="preparing")
    with exclusive_lock(partial), refused, part_lock(partial, Part(1, 3)):
        pass


def test_parts_of_two_ways_of_sharing_do_not_run_at_once(tmp_path):
    partial = tmp_path / "out.partial"
    refused = pytest.raises(ValueError, match="prepared in 3 parts, which overlap with part 1/2")
    with part_lock(partial, Part(1, 3)), refused, part_lock(partial, Part(1, 2)):
        pass
    with part_lock(partial, Part(1, 2)):
        pass


@given(st.integers(1, 40), st.integers(0, 200))
def test_parts_share_all_units(parts, units):
    shares = [number for i in range(1, parts + 1) for number in Part(i, parts).units(units)]
    assert shares == list(range(units))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared samples are not at hand")
@pytest.mark.parametrize(
    ("name", "documents", "text_tokens"),
    [
        ("fineweb_edu_sample.parquet", 209, 215_452),
        ("tinystories_train_sample.txt", 2_644, None),
        ("the_verdict.txt", 1, 5_145),
    ],
)
def test_real_samples_have_their_known_counts(tmp_path, name, documents, text_tokens):
    options = PrepareOptions(workers=1, val_tokens=0)
    train = prepare(file_source([str(SHARED / name)]), tmp_path / "out", options).manifest.train
    assert train.documents == documents
    assert text_tokens is None or train.tokens == text_tokens + documents
