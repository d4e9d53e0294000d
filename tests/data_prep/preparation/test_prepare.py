"""prepare(): the same bytes always, resumable, and nothing is ever overwritten."""

import base64
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset.manifest import Duplicates
from data_prep.dataset.shards import open_data_set
from data_prep.preparation import duplicates
from data_prep.preparation import unit as unit_file
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.preparation.work_locks import exclusive_lock
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import Tokenizer
from storage.atomic import save_array
from tests.data_prep.stories import (
    STORIES,
    folder_bytes,
    prepared,
    story,
    texts_of,
    write_as,
    write_lines,
)
from tests.launching import REPO

SHARED = REPO.parent / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def test_the_source_index_gives_file_and_row(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["a0", "", "a2"])
    write_lines(tmp_path / "b.jsonl", ["b0", "b1"])
    data = prepared(tmp_path, "a.jsonl", "b.jsonl")
    places = np.load(data.folder / "train_000000.source.npy")
    assert places.tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]


def test_empty_documents_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n\n{"text": null}\n{"text": "x"}\n')
    data = prepared(tmp_path, "a.jsonl")
    assert (data.manifest.skipped_empty, texts_of(data)) == (3, ["x"])


def test_a_document_longer_than_a_shard_is_not_divided(tmp_path):
    texts = [story(1, 3000), "short", story(2, 3000)]
    write_lines(tmp_path / "a.jsonl", texts)
    assert texts_of(prepared(tmp_path, "a.jsonl", shard_tokens=100)) == texts


def test_max_documents_takes_the_first_documents_of_the_source(tmp_path):
    path = write_as(".parquet", tmp_path, STORIES)
    data = prepared(tmp_path, path.name, max_documents=23, shard_tokens=300)
    assert texts_of(data) == STORIES[:23]


def test_two_workers_give_the_bytes_of_one(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    source = file_source([str(tmp_path / "a.jsonl")])
    for workers in (1, 2):
        options = PrepareOptions(workers=workers, shard_tokens=300, val_tokens=400)
        prepare(source, tmp_path / f"out{workers}", options)
    one, two = (folder_bytes(tmp_path / f"out{workers}") for workers in (1, 2))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out1", "out2"]


def test_the_same_files_in_another_folder_give_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name / name).mkdir(parents=True)
        write_lines(tmp_path / name / name / "x.jsonl", STORIES)
        prepared(tmp_path / name, name)
    assert folder_bytes(tmp_path / "a" / "out") == folder_bytes(tmp_path / "b" / "out")


def test_a_finished_data_set_is_not_changed(tmp_path, caplog):
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
    with pytest.raises(ValueError, match=r"holds another data set \(there: shard_tokens=100000000"):
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
    with pytest.raises(ValueError, match="holds another data set .there: tokenizer=gpt2"):
        prepare(source, tmp_path / "out", options, letters)
    assert texts_of(prepare(source, tmp_path / "letters", options, letters)) == STORIES


def test_a_folder_with_other_files_is_an_error_and_an_empty_one_is_not(tmp_path):
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


def test_a_source_without_documents_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no document"):
        prepared(tmp_path, "a.jsonl")


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


def test_finished_units_are_kept_after_an_error_and_used_only_by_the_same_plan(tmp_path):
    bad = ["x" * 300, *STORIES, 3]
    write_lines(tmp_path / "a.jsonl", bad)
    for _ in range(2):
        with pytest.raises(ValueError, match="holds a number"):
            prepared(tmp_path, "a.jsonl", shard_tokens=300)
    assert len(list(tmp_path.glob("out.partial/units/*/unit.json"))) > 5
    with pytest.raises(ValueError, match=r"unfinished work of another .*shard_tokens=300"):
        prepared(tmp_path, "a.jsonl", shard_tokens=400)


def test_a_source_that_changes_during_the_preparation_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)

    class Shrinking(type(file_source([str(tmp_path)]))):
        def records(self, unit):
            yield from list(super().records(unit))[:-1]

    source = file_source([str(tmp_path / "a.jsonl")])
    with pytest.raises(ValueError, match="60 documents here when it was planned and 59 now"):
        prepare(Shrinking(**vars(source)), tmp_path / "out", PrepareOptions(workers=1))


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
    monkeypatch.setattr(duplicates, "HASHES_PER_PASS", 10)
    (tmp_path / "out").rename(tmp_path / "before")
    assert prepared(tmp_path, "a.jsonl", **options).fingerprint == data.fingerprint


def test_a_work_folder_left_by_a_crash_beside_a_complete_data_set_is_removed(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    prepared(tmp_path, "a.jsonl")
    (tmp_path / "out.partial" / "units" / "000000").mkdir(parents=True)
    (tmp_path / "out.partial" / "units" / "000000" / "unit.json").write_text("{}")
    prepared(tmp_path, "a.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]


@pytest.mark.skipif(not SHARED.exists(), reason="the shared samples are not here")
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
