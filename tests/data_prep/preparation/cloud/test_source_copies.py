"""Sources named by URL become the data sets of the same local files, or one clear error."""

import gzip
import json
import logging
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.dataset.shards import open_data_set
from data_prep.fineweb import FineWebOptions, prepare_fineweb
from data_prep.preparation.cloud import copy_threads, copying
from data_prep.preparation.cloud.source_copies import CopyOptions, opened_source
from data_prep.preparation.prepare import run_preparation
from data_prep.text import TextOptions
from data_prep.tinystories import TinyStoriesOptions, prepare_tinystories
from data_prep.train_tokenizer import TokenizerOptions, train_tokenizer
from tests.data_prep.preparation.cloud.flaky_store import (
    IMPATIENT,
    FlakyStore,
    files_below,
    flaky_store,
)
from tests.data_prep.stories import STORIES, folder_bytes, texts_of

LINES = "".join(json.dumps({"text": story}) + "\n" for story in STORIES).encode()


@pytest.fixture(autouse=True)
def _small_blocks_and_no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(copying, "_BLOCK_BYTES", 1000)


def make_tree(folder: Path) -> None:
    """Files of all kinds, and what is passed over."""
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / ".hidden").mkdir()
    (folder / "a" / "one.txt").write_text("\n<|endoftext|>\n".join(STORIES[:20]))
    (folder / "a" / "b" / "two.jsonl.gz").write_bytes(gzip.compress(LINES, mtime=0))
    pq.write_table(pa.table({"text": STORIES[20:]}), folder / "a" / "three.parquet")
    (folder / "a" / ".hidden" / "four.txt").write_text("hidden")
    (folder / "a" / "readme.pdf").write_text("no text")
    (folder / "a" / "config.json").write_text('{\n  "a": 1\n}\n')


def options(out: Path, *places: str, **more) -> TextOptions:
    more = {"workers": 1, "val_tokens": 0, "encoder": "tiktoken", **more}
    return TextOptions(paths=places, out=out, **more)


def make(out: Path, *places: str, **more) -> None:
    chosen = options(out, *places, **more)
    with chosen.opened() as source:
        run_preparation(source, out, chosen)


def failure(out: Path, *places: str, **more) -> str:
    with pytest.raises(ValueError, match=".") as error:
        make(out, *places, **more)
    return str(error.value)


def copied(out: Path, place: str) -> list[bytes]:
    """The content of the copies of what a URL names, with a policy that does not wait."""
    with opened_source([place], CopyOptions(out, retries=IMPATIENT)) as source:
        return [(source.root / file.name).read_bytes() for file in source.files]


@pytest.mark.parametrize("place", ["a", "a/**", "a/**/*.parquet", "a/*.txt", "a/b/two.jsonl.gz"])
def test_a_data_set_of_urls_is_that_of_the_same_local_files(tmp_path, place):
    make_tree(tmp_path / "tree")
    make(tmp_path / "local", str(tmp_path / "tree" / place))
    with flaky_store(files_below(tmp_path / "tree")):
        make(tmp_path / "remote", f"flaky://{place}")
    assert folder_bytes(tmp_path / "local") == folder_bytes(tmp_path / "remote")
    assert not (tmp_path / "remote.source").exists()


def test_the_folder_of_the_data_set_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with flaky_store({"/a.jsonl": LINES}):
        make(Path("below/out"), "flaky://a.jsonl")
    assert texts_of(open_data_set(tmp_path / "below" / "out")) == STORIES


def test_file_urls_are_local_files(tmp_path):
    make_tree(tmp_path / "tree")
    make(tmp_path / "one", str(tmp_path / "tree"))
    make(tmp_path / "other", f"file://{tmp_path}/tree")
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "other")


@pytest.mark.fault("D11", injected="every other answer dropped", identical=True)
def test_a_dropped_connection_is_continued_where_it_broke(tmp_path):
    def drop_every_other(path, start, content):
        if len(FlakyStore.reads) % 2:
            raise ConnectionResetError("reset by peer")
        return content

    with flaky_store({"/a.jsonl": LINES}):
        FlakyStore.on_read = drop_every_other
        assert copied(tmp_path / "out", "flaky://a.jsonl") == [LINES]
        starts = [start for _, start, _ in FlakyStore.reads]
    assert starts == [start for start in range(0, len(LINES), 1000) for _ in range(2)]


@pytest.mark.fault("D11", injected="a store that is lost while files are copied", identical=True)
def test_a_stopped_start_is_continued_without_reading_again_what_is_here(tmp_path):
    def fail_late(path, start, content):
        if start >= 3000:
            raise ConnectionResetError("reset by peer")
        return content

    files = {"/a.jsonl": LINES, "/b.jsonl": LINES[: LINES.index(b"\n") + 1]}
    with flaky_store(files):
        FlakyStore.on_read = fail_late
        with pytest.raises(ValueError, match=r"flaky://a.jsonl cannot be fetched .*4 attempts"):
            copied(tmp_path / "out", "flaky://*.jsonl")
        FlakyStore.on_read, FlakyStore.reads = None, []
        assert copied(tmp_path / "out", "flaky://*.jsonl") == list(files.values())
        assert FlakyStore.reads[0] == ("/a.jsonl", 2000, 3000)  # the last block may be torn
        assert {path for path, _, _ in FlakyStore.reads} == {"/a.jsonl"}
    assert not (tmp_path / "out.source").exists()


@pytest.mark.fault("D11", injected="a file replaced while it is copied")
def test_a_file_that_is_replaced_while_it_is_copied_is_copied_again(tmp_path, caplog):
    new = LINES[::-1]

    def replace_once(path, start, content):
        if start == 2000 and FlakyStore.store[path].getvalue() == LINES:
            FlakyStore().pipe_file("/a.jsonl", new)
        return content

    with flaky_store({"/a.jsonl": LINES}):
        FlakyStore.on_read = replace_once
        assert copied(tmp_path / "out", "flaky://a.jsonl") == [new]
    assert "flaky://a.jsonl changed while it was copied" in caplog.text


def test_a_file_that_never_stays_the_same_is_an_error(tmp_path):
    def replace_always(path, start, content):
        FlakyStore().pipe_file("/a.jsonl", LINES + b"\n" * len(FlakyStore.reads))
        return content

    with flaky_store({"/a.jsonl": LINES}):
        FlakyStore.on_read = replace_always
        with pytest.raises(ValueError, match=r"flaky://a.jsonl changed .*, 3 times in a row"):
            copied(tmp_path / "out", "flaky://a.jsonl")


def test_a_file_that_changes_between_two_starts_is_copied_anew(tmp_path):
    with flaky_store({"/a.jsonl": LINES}):
        with (
            pytest.raises(RuntimeError),
            opened_source(["flaky://a.jsonl"], CopyOptions(tmp_path / "out")),
        ):
            raise RuntimeError
        FlakyStore().pipe_file("/a.jsonl", LINES[::-1])
        assert copied(tmp_path / "out", "flaky://a.jsonl") == [LINES[::-1]]


def test_a_damaged_record_of_copies_leads_to_new_ones_and_deletes_nothing_else(tmp_path):
    (tmp_path / "out.source").mkdir()
    (tmp_path / "other.txt").touch()
    lines = [
        '{"copy": "../other.txt", "stamp": {}, "file": []}',
        '{"copy": "flaky/a.jsonl"}',
        "[",
        "7",
    ]
    (tmp_path / "out.source" / "copies.jsonl").write_text("\n".join(lines))
    with flaky_store({"/a.jsonl": LINES}):
        assert copied(tmp_path / "out", "flaky://a.jsonl") == [LINES]
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_a_copy_that_was_touched_is_copied_again(tmp_path):
    with flaky_store({"/a.jsonl": LINES}):
        with (
            pytest.raises(RuntimeError),
            opened_source(["flaky://a.jsonl"], CopyOptions(tmp_path / "out")) as source,
        ):
            (source.root / "a.jsonl").write_bytes(LINES[::-1])
            raise RuntimeError
        assert copied(tmp_path / "out", "flaky://a.jsonl") == [LINES]


@pytest.mark.fault("D11", injected="answers too short")
def test_a_short_answer_is_asked_again_and_then_an_error(tmp_path):
    with flaky_store({"/a.jsonl": LINES}):
        FlakyStore.on_read = lambda path, start, content: content[:-1]
        with pytest.raises(ValueError, match=r"a.jsonl cannot be .*999 bytes came of 1,000; 4 att"):
            copied(tmp_path / "out", "flaky://a.jsonl")


@pytest.mark.fault("D11", injected="content of another digest than the store says")
def test_content_is_compared_with_the_digest_of_the_store(tmp_path, caplog):
    good = {"md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg=="}  # of nothing
    with flaky_store({"/a.jsonl": b"", "/b.jsonl": LINES}):
        FlakyStore.more_info = lambda path: good if path == "/a.jsonl" else {}
        assert copied(tmp_path / "out", "flaky://*.jsonl") == [b"", LINES]
        azure = {"content_settings": {"content_md5": bytearray(16)}}
        FlakyStore.more_info = lambda path: azure if path == "/b.jsonl" else good
        with pytest.raises(ValueError, match=r"b.jsonl arrived damaged .*, 3 times in a row"):
            copied(tmp_path / "out", "flaky://*.jsonl")
    assert "b.jsonl arrived damaged" in caplog.text


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError("403 Forbidden"), r"a.jsonl may not be read .*give a login"),
        (OSError("Forbidden: b/o"), r"a.jsonl may not be read \(OSError: Forbidden"),
        (type("NoCredentialsError", (Exception,), {})("none"), r"may not be read .*give a login"),
        (FileNotFoundError("a.jsonl"), r"there is no flaky://a.jsonl"),
        (TypeError("wrong option"), r"a.jsonl cannot be read \(TypeError: wrong option\)"),
        (OSError("at https://u:secret@h/x?sig=secret"), r"at https://h/x; 4 attempts"),
    ],
)
def test_a_refusal_is_one_sentence_without_credentials(tmp_path, error, sentence):
    def refuse(path, start, content):
        raise error

    with flaky_store({"/a.jsonl": LINES}):
        FlakyStore.on_read = refuse
        with pytest.raises(ValueError, match=sentence) as found:
            copied(tmp_path / "out", "flaky://a.jsonl")
    assert "secret" not in str(found.value)


def test_mistakes_are_named_before_anything_is_copied(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (tmp_path / "local.txt").write_text("text")
    cases = {
        "flaky://none.txt": r"there is no flaky://none.txt",
        "flaky://none/*.txt": r"flaky://none/\*.txt holds no file of the kinds",
        "flaky://readme.pdf": r"flaky://readme.pdf is of no known kind",
        "nosuch://a/b.txt": r"nosuch:// is no kind of address .*s3://",
        "flaky://": r"flaky:// names nothing",
        "https:///a.txt": r"https:///a.txt names nothing",
        "zip://a.txt::https://u:secret@h/a.zip": r"https://h/a.zip is an address inside another",
        "flaky://a/../b.txt": r"part '\.\.', which cannot be the name of a file",
        "s3://bucket/a.txt": r"needs the package s3fs, .*`pip install s3fs`",
    }
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with flaky_store({"/readme.pdf": b"", "/a/../b.txt": b"text"}):
        for place, sentence in cases.items():
            assert re.search(sentence, text := failure(out, place)), text
            assert "secret" not in text
        both = failure(out, "flaky://readme.pdf", str(tmp_path / "local.txt"))
        assert re.search(r"local.txt is local and flaky://readme.pdf is not", both)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.txt"]


def test_a_complete_data_set_is_recognised_without_copying(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with flaky_store({"/a.jsonl": LINES}):
        make(tmp_path / "out", "flaky://a.jsonl")
        before, FlakyStore.reads = folder_bytes(tmp_path / "out"), []
        make(tmp_path / "out", "flaky://a.jsonl")
        FlakyStore().pipe_file("/a.jsonl", LINES + LINES)
        assert "holds another data set" in failure(tmp_path / "out", "flaky://a.jsonl")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        assert "is no data set" in failure(tmp_path / "full", "flaky://a.jsonl")
        assert FlakyStore.reads == []
    assert folder_bytes(tmp_path / "out") == before
    assert "not read again" in caplog.text


def test_a_bad_record_keeps_the_copies_and_a_check_reads_them(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with flaky_store({"/a.jsonl": LINES + b"no json\n", "/b.txt": "naïve".encode("utf-16")}):
        assert failure(tmp_path / "out", "flaky://a.jsonl").startswith("flaky://a.jsonl, line 61")
        assert failure(tmp_path / "b", "flaky://b.txt").startswith("flaky://b.txt is in UTF-16")
        FlakyStore.reads = []
        with pytest.raises(SystemExit):
            make(tmp_path / "out", "flaky://a.jsonl", check=True)
        assert FlakyStore.reads == []
        make(tmp_path / "out", "flaky://a.jsonl", skip_bad=1)
    assert "out.source keeps what was copied" in caplog.text
    assert caplog.text.count("flaky://a.jsonl, line 61") == 1  # of the check
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.source", "out"]


def test_a_check_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with flaky_store({"/a.jsonl": LINES}):
        make(tmp_path / "out", "flaky://a.jsonl", check=True)
    assert list(tmp_path.iterdir()) == []


def test_parts_share_the_copies_until_they_are_merged(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    make(tmp_path / "whole", str(tmp_path / "a.jsonl"), shard_tokens=900)
    with flaky_store({"/a.jsonl": LINES}):
        for more in ({"part": "1/2"}, {"part": "2/2"}, {"merge": True}):
            make(tmp_path / "out", "flaky://a.jsonl", shard_tokens=900, **more)
        assert len(FlakyStore.reads) == -(-len(LINES) // 1000)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    assert not (tmp_path / "out.source").exists()


def test_a_full_disk_is_found_before_copying(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with flaky_store({"/a.jsonl": LINES}):
        assert re.search(
            r"100 bytes free, but the files have", failure(tmp_path / "o", "flaky://a.jsonl")
        )
        assert FlakyStore.reads == []


def test_a_tokenizer_is_trained_on_urls(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    local = TokenizerOptions((str(tmp_path / "a.jsonl"),), 300, tmp_path / "local")
    with flaky_store({"/a.jsonl": LINES}):
        remote = TokenizerOptions(("flaky://a.jsonl",), 300, tmp_path / "remote")
        ranks = {train_tokenizer(chosen).ranks_sha256 for chosen in (local, remote)}
    assert len(ranks) == 1
    assert not (tmp_path / "remote.source").exists()


def test_worker_processes_read_the_copies(tmp_path):
    with flaky_store({"/a.jsonl": LINES}):
        make(tmp_path / "out", "flaky://a.jsonl", workers=2, shard_tokens=900)
    assert texts_of(open_data_set(tmp_path / "out")) == STORIES


def test_names_that_differ_by_case_only_are_told_apart_or_refused(tmp_path, monkeypatch):
    with flaky_store({"/a.txt": b"one", "/A.txt": b"two"}):
        assert copied(tmp_path / "out", "flaky://*.txt") == [b"two", b"one"]
        monkeypatch.setattr(copy_threads, "_ignores_case", lambda folder: True)
        with pytest.raises(ValueError, match=r"A.txt and flaky://a.txt differ by case only"):
            copied(tmp_path / "out", "flaky://*.txt")


def test_stories_for_training_and_validation_may_be_urls(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.txt").write_text(STORIES[0])
    more = {"workers": 1, "encoder": "tiktoken"}
    with flaky_store(files_below(tmp_path)):
        for name, start in (("local", f"{tmp_path}/"), ("remote", "flaky://")):
            files = {"train_files": (f"{start}a.jsonl",), "val_files": (f"{start}b.txt",)}
            prepare_tinystories(TinyStoriesOptions(out=tmp_path / name / "out", **files, **more))
    assert folder_bytes(tmp_path / "local") == folder_bytes(tmp_path / "remote")


def test_fineweb_may_be_a_url_and_its_copies_may_stay(tmp_path):
    make_tree(tmp_path / "tree")
    more = {"workers": 1, "val_tokens": 0, "encoder": "tiktoken"}
    with flaky_store(files_below(tmp_path / "tree")):
        source = "flaky://a/*.parquet"
        options = FineWebOptions(source=source, out=tmp_path / "out", keep_source=True, **more)
        prepare_fineweb(options)
        reads = len(FlakyStore.reads)
        prepare_fineweb(options)
        assert len(FlakyStore.reads) == reads
    assert texts_of(open_data_set(tmp_path / "out")) == STORIES[20:]
    assert (tmp_path / "out.source" / "flaky" / "a" / "three.parquet").is_file()
