"""Validation documents: every kind of split, its target, and its errors."""

import pytest

from data_prep.preparation import prepare as prepare_file
from data_prep.preparation import split
from data_prep.preparation.split import text_hash
from data_prep.tokenizer import gpt2_tokenizer
from tests.data_prep.stories import STORIES, prepared, story, texts_of, write_lines


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


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


def test_the_default_validation_is_one_token_in_twenty(tmp_path):
    write_lines(tmp_path / "a.jsonl", [story(number) for number in range(1500)])
    data = prepared(tmp_path, "a.jsonl", val_tokens=None)
    share = data.manifest.val.tokens / (data.manifest.val.tokens + data.manifest.train.tokens)
    assert 0.03 < share < 0.07
    assert data.manifest.split_rule["val_tokens"] > 0


def test_the_tail_of_two_documents_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    with pytest.raises(ValueError, match=r"the source has 2 documents; use --split hash"):
        prepared(tmp_path, "a.txt", split="tail", val_tokens=None)


def test_more_validation_tokens_than_the_source_has_is_an_error(tmp_path):
    write_lines(tmp_path / "a.jsonl", STORIES)
    with pytest.raises(ValueError, match=r"val_tokens=1000000 is not less than the about"):
        prepared(tmp_path, "a.jsonl", val_tokens=1_000_000)


def test_a_split_without_documents_is_an_error_and_leaves_no_files(tmp_path):
    write_lines(tmp_path / "a.jsonl", ["only one " * 50])
    with pytest.raises(ValueError, match="no document fell to validation"):
        prepared(tmp_path, "a.jsonl", val_tokens=1)
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(ValueError, match="no document fell to train"):
        prepared(tmp_path, "a.jsonl", val_tokens=1, split="first")


def test_the_first_documents_are_tokenized_once_to_find_the_split(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl", [*STORIES, 3])
    calls = []
    real = split.decide_split
    monkeypatch.setattr(prepare_file, "decide_split", lambda *w: calls.append(1) or real(*w))
    for _ in range(2):
        with pytest.raises(ValueError, match="holds a number"):
            prepared(tmp_path, "a.jsonl", split="first", val_tokens=500, shard_tokens=300)
    assert calls == [1]
