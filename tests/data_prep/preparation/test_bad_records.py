"""One bad record costs one record, and the repair of a file costs that file's units only."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dataset.manifest import BadEntry, read_manifest
from data_prep.dataset.shards import check_data_set
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare, prepare_part, run_preparation
from data_prep.preparation.unit import UnitWork
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer
from tests.data_prep.stories import STORIES, folder_bytes, prepared, texts_of, write_lines
from tests.wide_data import wide_tokenizer

TORN = '{"text": "torn\n'


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def line(text: object) -> str:
    return json.dumps({"text": text}) + "\n"


def good(*texts: str) -> str:
    return "".join(map(line, texts))


@pytest.fixture
def torn(tmp_path) -> Path:
    """Two files with three bad lines among 60 good ones."""
    (tmp_path / "a.jsonl").write_text(good(*STORIES[:20]) + TORN + good(*STORIES[20:40]) + line(3))
    (tmp_path / "b.jsonl").write_text(good(*STORIES[40:50]) + '{"body": 1}\n' + good(*STORIES[50:]))
    return tmp_path


@pytest.mark.fault("D4", injected="three bad lines")
@pytest.mark.parametrize("shard_tokens", [300, 10**8])
def test_bad_records_are_left_out_counted_and_named(torn, shard_tokens, caplog):
    with caplog.at_level("INFO"):
        data = prepared(torn, "*.jsonl", skip_bad=3, shard_tokens=shard_tokens)
    assert texts_of(data) == STORIES
    manifest = read_manifest(data.folder)
    assert manifest.bad_records == 3
    assert [(e.file, e.row) for e in manifest.first_bad_records] == [
        ("a.jsonl", 20),
        ("a.jsonl", 41),
        ("b.jsonl", 10),
    ]
    assert "line 21" in manifest.first_bad_records[0].place
    assert "3 bad records left out" in caplog.text
    assert "  b.jsonl, line 11" in caplog.text


def test_without_bad_records_the_manifest_does_not_speak_of_them(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    strict = folder_bytes(prepared(tmp_path, "a.jsonl").folder)
    (tmp_path / "out").rename(tmp_path / "strict")
    assert folder_bytes(prepared(tmp_path, "a.jsonl", skip_bad=9).folder) == strict
    assert "bad" not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize("shard_tokens", [300, 10**8])
@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (0, r"a\.jsonl, line 21 .*repair or drop .*; list all with --check, or .*--skip-bad N"),
        (1, r"a\.jsonl, line 42 .*--skip-bad 1 allows no more"),
        (2, r"b\.jsonl, line 11 .*--skip-bad 2 allows no more"),
    ],
)
def test_one_more_bad_record_than_allowed_is_named(torn, allowed, message, shard_tokens):
    with pytest.raises(ValueError, match=message):
        prepared(torn, "*.jsonl", skip_bad=allowed, shard_tokens=shard_tokens)
    data = prepared(torn, "*.jsonl", skip_bad=3, shard_tokens=shard_tokens)
    assert (texts_of(data), data.manifest.bad_records) == (STORIES, 3)


def test_the_count_is_that_of_all_parts_and_of_any_number_of_workers(torn, tmp_path):
    source = file_source([str(torn / "*.jsonl")])
    options = PrepareOptions(workers=2, shard_tokens=300, val_tokens=0, skip_bad=3)
    right = folder_bytes(prepare(source, tmp_path / "right", options).folder)
    for part in ("1/2", "2/2"):
        prepare_part(source, tmp_path / "out", replace(options, part=part, workers=1))
    merge = replace(options, merge=True)
    with pytest.raises(ValueError, match=r"b\.jsonl, line 11 .*--skip-bad 2 allows no more"):
        prepare(source, tmp_path / "out", replace(merge, skip_bad=2))
    prepare(source, tmp_path / "out", merge)
    assert folder_bytes(tmp_path / "out") == right


@pytest.mark.parametrize("workers", [1, 2])
def test_a_check_lists_every_bad_record_and_unreadable_file(torn, tmp_path, caplog, workers):
    table = pa.table({"text": ["fine", "words"]})
    pq.write_table(table, torn / "c.parquet", write_page_checksum=True, compression="none")
    content = (torn / "c.parquet").read_bytes()
    (torn / "c.parquet").write_bytes(content.replace(b"fine", b"fime"))
    (torn / "d.parquet").write_bytes(content[:-9])
    source = file_source([str(torn)])
    options = PrepareOptions(workers=workers, shard_tokens=300, check=True)
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as stopped:
        run_preparation(source, tmp_path / "out", options)
    assert stopped.value.code == 1
    said = [record.getMessage() for record in caplog.records if record.name.endswith("check")]
    assert [Path(text.split(",")[0].split(" ")[0]).name for text in said[:-1]] == [
        "d.parquet",
        "a.jsonl",
        "a.jsonl",
        "b.jsonl",
        *["c.parquet"] * 2,
    ]
    assert said[-1] == "4 files, 65 records: 5 bad records, 1 unreadable files"
    assert not list(tmp_path.glob("out*"))


def test_a_check_of_a_sound_source_finds_nothing(tmp_path, caplog):
    write_lines(tmp_path / "a.jsonl", STORIES)
    source, options = file_source([str(tmp_path / "a.jsonl")]), PrepareOptions(check=True)
    with caplog.at_level("INFO", "data_prep.preparation.check"):
        run_preparation(source, tmp_path / "out", options)
    assert caplog.messages[-1:] == ["1 files, 60 records: 0 bad records, 0 unreadable files"]


def test_a_text_that_the_tokenizer_refuses_is_a_bad_record(tmp_path):
    other = Tokenizer("other", r"\s+(?!\S)|\s|\S+", gpt2_tokenizer().ranks)
    write_lines(tmp_path / "a.jsonl", ["one", "x" + " " * 1_100_000 + "y", "two"])
    source = file_source([str(tmp_path / "a.jsonl")])
    options = PrepareOptions(workers=1, val_tokens=0)
    with pytest.raises(ValueError, match=r"a\.jsonl, row 1: tokenizer other cannot encode it"):
        prepare(source, tmp_path / "out", options, other)
    data = prepare(source, tmp_path / "out", replace(options, skip_bad=1), other)
    assert texts_of(data) == ["one", "two"]


def units_made(monkeypatch) -> list[str]:
    """The names of the files of each unit that is made from now on."""
    made: list[str] = []
    real = UnitWork.run

    def run(self, unit, *more):
        result = real(self, unit, *more)
        made.extend(self.source.files[span.file].name for span in unit.spans)
        return result

    monkeypatch.setattr(UnitWork, "run", run)
    return made


@pytest.mark.parametrize("val_tokens", [0, None, 900])
def test_the_repair_of_a_file_keeps_the_units_of_others(tmp_path, monkeypatch, val_tokens):
    write_lines(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "b.jsonl").write_text(good("x" * 40, "y") + TORN)
    options = {"shard_tokens": 300, "val_tokens": val_tokens}
    with pytest.raises(ValueError, match=r"b\.jsonl, line 3"):
        prepared(tmp_path, "*.jsonl", **options)
    made = units_made(monkeypatch)
    (tmp_path / "b.jsonl").write_text(good("x" * 40, "y", "mended"))
    data = prepared(tmp_path, "*.jsonl", **options)
    assert set(made) == {"b.jsonl"}
    check_data_set(data, "full")
    kept = folder_bytes(data.folder)
    (tmp_path / "out").rename(tmp_path / "kept")
    assert folder_bytes(prepared(tmp_path, "*.jsonl", **options).folder) == kept


@pytest.mark.parametrize("name", ["0.jsonl", "ab.jsonl", "c.jsonl"])
def test_a_new_file_under_the_glob_keeps_the_units_of_others(tmp_path, monkeypatch, name):
    write_lines(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "b.jsonl").write_text(TORN)
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1"):
        prepared(tmp_path, "*.jsonl", shard_tokens=300)
    made = units_made(monkeypatch)
    write_lines(tmp_path / "b.jsonl", ["mended"])
    write_lines(tmp_path / name, STORIES[:9])
    data = prepared(tmp_path, "*.jsonl", shard_tokens=300)
    assert "a.jsonl" not in made
    kept = folder_bytes(data.folder)
    (tmp_path / "out").rename(tmp_path / "kept")
    assert folder_bytes(prepared(tmp_path, "*.jsonl", shard_tokens=300).folder) == kept


@pytest.mark.parametrize("wide", [False, True])
def test_a_larger_source_has_another_share_of_validation_but_no_new_tokens(
    tmp_path, monkeypatch, wide
):
    write_lines(tmp_path / "a.jsonl", [*STORIES, "", "x"])
    (tmp_path / "b.jsonl").write_text(good(*STORIES[:20]) + TORN)
    options = {"shard_tokens": 300, "val_tokens": 700}
    if wide:  # each letter of these stories is a token
        wide_tokenizer().save(tmp_path / "wide")
        options = {"shard_tokens": 3000, "val_tokens": 4000, "tokenizer": tmp_path / "wide"}
    with pytest.raises(ValueError, match=r"b\.jsonl, line 21"):
        prepared(tmp_path, "*.jsonl", **options)
    tokenized = []
    real = UnitWork._tokenize
    monkeypatch.setattr(UnitWork, "_tokenize", lambda *w: tokenized.append(w[1]) or real(*w))
    write_lines(tmp_path / "b.jsonl", STORIES[:20])
    write_lines(tmp_path / "c.jsonl", [text[::-1] for text in STORIES])
    data = prepared(tmp_path, "*.jsonl", **options)
    assert {span.file for unit in tokenized for span in unit.spans} == {1, 2}
    kept = folder_bytes(data.folder)
    (tmp_path / "out").rename(tmp_path / "kept")
    assert folder_bytes(prepared(tmp_path, "*.jsonl", **options).folder) == kept
    assert data.manifest.val.documents > 3
    assert data.manifest.token_bytes == (4 if wide else 2)


def test_the_repair_of_the_only_file_starts_again_without_a_word_of_deleting(tmp_path):
    (tmp_path / "a.jsonl").write_text(good(*STORIES) + TORN)
    with pytest.raises(ValueError, match="line 61"):
        prepared(tmp_path, "a.jsonl", shard_tokens=300)
    assert list(tmp_path.glob("out.partial/units/[!.]*/unit.json"))
    write_lines(tmp_path / "a.jsonl", STORIES)
    assert texts_of(prepared(tmp_path, "a.jsonl", shard_tokens=300)) == STORIES


def test_equal_files_have_units_of_their_own(tmp_path):
    for name in "abc":
        write_lines(tmp_path / f"{name}.jsonl", STORIES)
    data = prepared(tmp_path, "*.jsonl", shard_tokens=1000)
    assert texts_of(data) == STORIES * 3


def test_a_start_that_was_killed_while_it_moved_the_shards_may_see_another_source(
    tmp_path, monkeypatch
):
    write_lines(tmp_path / "a.jsonl", STORIES)
    options = {"shard_tokens": 300}
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.preparation.assemble.count_duplicates", None)
        with pytest.raises(TypeError):
            prepared(tmp_path, "a.jsonl", **options)
    write_lines(tmp_path / "0.jsonl", ["new"])
    assert texts_of(prepared(tmp_path, "*.jsonl", **options)) == ["new", *STORIES]


def test_what_killed_processes_left_is_not_published(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "b.jsonl").write_text(TORN)
    with pytest.raises(ValueError, match="line 1"):
        prepared(tmp_path, "*.jsonl", shard_tokens=300)
    data = tmp_path / "out.partial" / "data"
    for name in ("tokenizer/.ranks.tiktoken.host.7.partial", ".manifest.json.host.7.partial"):
        (data / name).write_text("half")
    (data / "train_000099.npy").write_text("of another plan")
    write_lines(tmp_path / "b.jsonl", ["mended"])
    prepared(tmp_path, "*.jsonl", shard_tokens=300)
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not [name for name in left if name.endswith(".partial") or "99" in name]


def test_a_damaged_list_of_bad_records_is_noticed(torn):
    data = prepared(torn, "*.jsonl", skip_bad=3)
    path = data.folder / "manifest.json"
    first = json.loads(path.read_text())["first_bad_records"][0]
    assert read_manifest(data.folder).first_bad_records[0] == BadEntry(**first)
    path.write_text(path.read_text().replace('"bad_records": 3', '"bad_records": 2'))
    with pytest.raises(ValueError, match="does not fit its own fingerprint"):
        read_manifest(data.folder)
