"""The fast encoder is compared with tiktoken while it works, and disabled when it fails."""

import json
import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.preparation import encoder as encoder_module
from data_prep.preparation import unit as unit_module
from data_prep.preparation.encoder import (
    CHECKED_FIRST,
    CHECKED_SHARE,
    Encoder,
    EncoderMismatch,
    Gigatoken,
    fast_encoder,
    is_sampled,
)
from data_prep.preparation.split import SplitRule
from data_prep.preparation.unit import UnitWork
from data_prep.sources.file_source import FileSource, Unit, file_source
from data_prep.tokenizer import Tokenizer, gpt2_tokenizer, utf8
from storage.byte_pairs import GPT2_PATTERN, PATTERNS, ranks_file
from tests.wide_data import wide_text, wide_tokenizer

KEY = "a_key"
COMMA = 11  # its id
STORIES = [f"Story {number}: the river ran under stone {number * 7}." for number in range(400)]


class Faulty:
    """A fast encoder that is tiktoken with a fault in the documents that contain `bad`."""

    name = "faulty"

    def __init__(self, bad: str, fault: str = "ids") -> None:
        self.bad = bad
        self.fault = fault
        self.calls = 0

    def encode(self, text: bytes) -> np.ndarray:
        self.calls += 1
        ids = gpt2_tokenizer().encode_to_numpy(text.decode()).astype(np.uint32)
        if self.bad in text.decode():
            if self.fault == "panic":
                raise BaseException("a panic")
            ids[3] = COMMA if self.fault == "ids" else 70_000
        return ids

    def may_differ(self, text: bytes) -> bool:
        return False


class NoProgress:
    """A progress reporter that discards everything."""

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        pass


def units_of(source: FileSource) -> list[Unit]:
    """The source as one unit."""
    return [replace(unit, key=KEY) for unit in source.plan(1 << 40)]


def encode(texts: list[str], fast=None, first_row: int = 1) -> tuple[list[int], list[int]]:
    encoder = Encoder(gpt2_tokenizer(), fast)
    places = [(0, row) for row in range(first_row, first_row + len(texts))]
    tokens, lengths = encoder.encode([utf8(text) for text in texts], places)
    assert tokens.dtype == np.uint16
    return tokens.tolist(), lengths.tolist()


def made(folder: Path, fast, monkeypatch) -> dict[str, bytes]:
    """The bytes of a unit's folder, made with a fast encoder or (None) without."""
    folder.mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in STORIES)
    (folder / "a.jsonl").write_text(lines)
    source = file_source([str(folder / "a.jsonl")])
    monkeypatch.setattr(unit_module, "fast_encoder", lambda tokenizer: fast)
    work = UnitWork(source, SplitRule("hash", threshold=1 << 60), folder / "units")
    [unit] = units_of(source)
    work.run(unit, gpt2_tokenizer(), NoProgress())
    result = work.result(unit)
    assert result is not None
    assert result.encoder == (
        "tiktoken" if fast is None or work.fast_encoder_disabled else fast.name
    )
    files = (folder / "units" / KEY).iterdir()
    return {path.name: path.read_bytes() for path in files if path.suffix == ".npy"}


def test_a_batch_is_its_documents_in_order_each_opened_by_end_of_text():
    tokens, lengths = encode(["Hello world", "", "a<|endoftext|>b"])
    rows = [gpt2_tokenizer().encode(text) for text in ("Hello world", "", "a<|endoftext|>b")]
    assert tokens == [token for row in rows for token in (50256, *row)]
    assert lengths == [3, 1, 10]


def test_without_gigatoken_tiktoken_encodes_everything(monkeypatch):
    monkeypatch.setattr("data_prep.preparation.encoder.gigatoken", None)
    assert fast_encoder.__wrapped__(gpt2_tokenizer()) is None
    assert Encoder(gpt2_tokenizer(), None).name == "tiktoken"


def test_a_tokenizer_with_another_pattern_is_encoded_by_tiktoken():
    ranks = gpt2_tokenizer().ranks
    assert fast_encoder(Tokenizer("other", r"\w+|\W", ranks)) is None


@pytest.mark.parametrize("fault", ["ids", "high", "panic"])
@pytest.mark.parametrize("number", [0, 3, 150, 399])
def test_a_wrong_fast_encoder_is_disabled_and_the_bytes_are_those_of_tiktoken(
    tmp_path, monkeypatch, caplog, fault, number
):
    right = made(tmp_path / "right", None, monkeypatch)
    faulty = Faulty(f"Story {number}:", fault)
    with caplog.at_level(logging.WARNING):
        assert made(tmp_path / "wrong", faulty, monkeypatch) == right
    assert faulty.calls >= 1
    assert "faulty and tiktoken disagree" in caplog.text


def test_the_warning_names_the_document_and_the_ids(tmp_path, monkeypatch, caplog):
    made(tmp_path / "wrong", Faulty("Story 0:"), monkeypatch)
    expected = gpt2_tokenizer().encode(STORIES[0])[3:7]
    found = [COMMA, *expected[1:]]
    assert f"in row 0 of a.jsonl: from token 3 on it gives {found} and" in caplog.text
    assert f"tiktoken {expected};" in caplog.text


def test_once_found_wrong_it_is_never_used_again_and_its_units_are_made_again(
    tmp_path, monkeypatch
):
    made(tmp_path / "wrong", Faulty("Story 0:"), monkeypatch)
    folder = tmp_path / "wrong"
    source = file_source([str(folder / "a.jsonl")])
    work = UnitWork(source, SplitRule("hash"), folder / "units")
    [unit] = units_of(source)
    described = folder / "units" / KEY / "unit.json"
    described.write_text(described.read_text().replace('"tiktoken"', '"faulty"'))
    assert work.result(unit) is None
    faulty = Faulty("Story 0:")
    monkeypatch.setattr(unit_module, "fast_encoder", lambda tokenizer: faulty)
    work.run(unit, gpt2_tokenizer(), NoProgress())
    assert faulty.calls == 0
    result = work.result(unit)
    assert result is not None
    assert result.encoder == "tiktoken"


def test_a_correct_fast_encoder_makes_the_same_bytes(tmp_path, monkeypatch):
    right = made(tmp_path / "right", None, monkeypatch)
    faulty = Faulty("no story has this")
    assert made(tmp_path / "fast", faulty, monkeypatch) == right
    assert faulty.calls > 0


def test_a_pattern_that_does_not_cover_the_text_is_one_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("one, two")
    source = file_source([str(tmp_path / "a.txt")])
    work = UnitWork(source, SplitRule("hash"), tmp_path / "units")
    letters = Tokenizer("letters", r"\p{L}+", gpt2_tokenizer().ranks)
    with pytest.raises(ValueError, match=r"tokenizer letters loses text .* cover the text; use an"):
        work.run(units_of(source)[0], letters, NoProgress())


@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 22])
def test_tokens_written_in_batches_make_the_file_that_numpy_writes(
    tmp_path, monkeypatch, batch_bytes
):
    monkeypatch.setattr(unit_module, "BATCH_BYTES", batch_bytes)
    files = made(tmp_path / "made", None, monkeypatch)
    whole = BytesIO()
    np.save(whole, np.load(BytesIO(files["train.npy"])))
    assert files["train.npy"] == whole.getvalue()
    assert len(np.load(BytesIO(files["train.lengths.npy"]))) > 300


@pytest.mark.parametrize("text", ["a <|endoftext|> b", "a\0b"])
def test_documents_with_special_text_never_reach_the_fast_encoder(text):
    class Refusing(Faulty):
        def encode(self, text):
            raise AssertionError(text)

    assert encode([text], Refusing("x")) == encode([text])


def test_the_first_documents_and_a_fixed_sample_are_checked(monkeypatch):
    checked = []
    monkeypatch.setattr(Encoder, "_compare", lambda self, fast, place, *ids: checked.append(place))
    encode(["word"] * 2000, Faulty("no"), first_row=0)
    sample = [(0, row) for row in range(2000) if is_sampled((0, row))]
    assert checked == sorted({*sample, *((0, row) for row in range(CHECKED_FIRST))})
    found = sum(is_sampled((file, row)) for file in range(20) for row in range(5000))
    assert 0.8 < found * CHECKED_SHARE / 100_000 < 1.2


def test_the_ids_of_a_shard_must_decode_to_as_many_bytes_as_its_text():
    encoder = Encoder(gpt2_tokenizer(), Faulty(""))
    counts = np.bincount(gpt2_tokenizer().encode_to_numpy("Hello world"), minlength=50257)
    encoder.check_bytes(counts, 11)
    with pytest.raises(EncoderMismatch):
        encoder.check_bytes(counts, 12)


# Unicode of all kinds, with the texts that tokenizers often get wrong.
TEXT = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(st.characters(categories=["Cs", "Cc", "Zs", "Mn", "Nd", "Nl", "No"]), max_size=9),
        st.sampled_from(
            [
                "<|endoftext|>",
                "\0",
                "\ud800",
                "'ll",
                "'LL",
                " \u2028",
                "\u00a0",
                "é",
                "🏳️‍🌈",
                "  \n\n",
            ]
        ),
    ),
    max_size=8,
).map("".join)


@pytest.mark.skipif(fast_encoder(gpt2_tokenizer()) is None, reason="gigatoken is not installed")
@given(texts=st.lists(TEXT, min_size=1, max_size=12))
@example(texts=["a" * 5000, " " * 3000 + "b", "<|endoftext|>", "", "\ud83d\ude00"])
def test_gigatoken_gives_the_ids_of_tiktoken_for_any_unicode(texts):
    fast = fast_encoder(gpt2_tokenizer())
    assert isinstance(fast, Gigatoken)
    assert encode(texts, fast) == encode(texts)
    rows = [
        fast.encode(utf8(text)).tolist() for text in texts
    ]  # also the texts that it is never given in practice
    assert rows == [gpt2_tokenizer().encode(utf8(text).decode()) for text in texts]


@pytest.mark.skipif(fast_encoder(gpt2_tokenizer()) is None, reason="gigatoken is not installed")
@pytest.mark.parametrize("name", ["gpt2", "gpt4", "qwen2"])
def test_gigatoken_works_with_any_vocabulary_of_the_patterns_that_it_knows(name):
    lines = gpt2_tokenizer().ranks.splitlines(keepends=True)
    small = Tokenizer("small", PATTERNS[name], b"".join(lines[:700]))
    fast = fast_encoder(small)
    assert isinstance(fast, Gigatoken)

    @given(text=TEXT)
    @example(text="It'S WE'll'\u017fx 12345\r\n \n\n  x\t_x--\n'\u00a0y\u3000z")
    def gives_the_same_ids(text):
        assert fast.encode(utf8(text)).tolist() == small.encode(utf8(text).decode())

    gives_the_same_ids()


def test_a_pattern_that_gigatoken_does_not_know_is_tiktokens():
    for name in ("o200k", "nanochat"):
        assert fast_encoder(Tokenizer("x", PATTERNS[name], gpt2_tokenizer().ranks)) is None


@pytest.mark.skipif(fast_encoder(gpt2_tokenizer()) is None, reason="gigatoken is not installed")
def test_both_encoders_give_the_same_ids_beyond_two_bytes():
    wide, texts = wide_tokenizer(), [wide_text(number).encode() for number in range(20)]
    places = [(0, row) for row in range(20)]
    fast = fast_encoder(wide)
    assert fast is not None
    found = [Encoder(wide, one).encode(texts, places) for one in (None, fast)]
    assert found[0][0].dtype == np.uint32
    assert found[0][0].max() == wide.end_of_text > 2**16
    assert all(map(np.array_equal, *found))


def test_ranks_that_no_merging_gives_are_left_to_tiktoken():
    unreachable = ranks_file([*(bytes([byte]) for byte in range(256)), b" abcd"])
    assert fast_encoder(Tokenizer("unreachable", GPT2_PATTERN, unreachable)) is None


@pytest.mark.skipif(fast_encoder(gpt2_tokenizer()) is None, reason="gigatoken is not installed")
@pytest.mark.parametrize(
    "character", ["\ua7ce", "\u088f", "\U00033479", "\U000e0067", "\U0010fffd"]
)
def test_letters_that_only_one_encoder_knows_are_encoded_by_tiktoken(character):
    texts = [f"Row {row}: {character}'s and {character}{character}'t." for row in range(40)]
    fast = fast_encoder(gpt2_tokenizer())
    assert fast is not None
    assert fast.may_differ(texts[0].encode())
    assert encode(texts, fast) == encode(texts)


def test_too_many_letters_that_differ_end_the_use_of_the_fast_encoder(monkeypatch):
    monkeypatch.setattr(encoder_module, "_MOST_DIFFERING", -1)
    monkeypatch.setattr(encoder_module, "differing_outside_ascii", lambda *encoders: [0x88F])
    if fast_encoder(gpt2_tokenizer()) is None:
        pytest.skip("gigatoken is not installed")
    with pytest.raises(EncoderMismatch, match=r"1 characters for something else, .*U\+088F"):
        encoder_module._gigatoken_differs.__wrapped__(GPT2_PATTERN)
