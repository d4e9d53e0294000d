"""The tokenizer: GPT-2's ids, bytes and files, without any network."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import tokenizer as tokenizer_file
from data_prep.preparation.encoder import fast_encoder
from data_prep.text import TextOptions
from data_prep.tokenizer import (
    Tokenizer,
    gpt2_tokenizer,
    load_tokenizer,
    named_tokenizer,
)
from storage import byte_pairs
from tests.launching import REPO

SHARED_CACHE = REPO.parent / "shared" / "data" / "tiktoken_cache"


def test_gpt2_ids_are_openais():
    tokenizer = gpt2_tokenizer()
    assert (tokenizer.n_vocab, tokenizer.end_of_text) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("I'm 24, naïve  \n") == [40, 1101, 1987, 11, 41492, 220, 220, 198]


@pytest.mark.skipif(not SHARED_CACHE.exists(), reason="tiktoken's own files are not here")
@given(text=st.text())
def test_ids_equal_tiktokens(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
        import tiktoken

        assert gpt2_tokenizer().encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


def test_a_literal_end_of_text_is_ordinary_text():
    ids = gpt2_tokenizer().encode("<|endoftext|>")
    assert ids == [27, 91, 437, 1659, 5239, 91, 29]


@pytest.mark.parametrize("text", ["x{}y", "{}", "{}'s x", "x{}", "a{}b{}<|endoftext|>\ud800"])
@pytest.mark.parametrize("space", [" ", "\n", "\u3000"])
def test_a_million_spaces_in_a_row_are_encoded_whatever_tiktoken_says(text, space):
    text = text.replace("{}", space * 1_100_000)
    ids = gpt2_tokenizer().encode(text)
    assert gpt2_tokenizer().decode(ids) == text.replace("\ud800", "\ufffd")
    fast = fast_encoder(gpt2_tokenizer())
    if fast is not None and "\ud800" not in text:
        assert fast.encode(text.encode()).tolist() == ids


@given(
    st.lists(st.sampled_from([" ", "\n", "\t", "\u3000", "\x85", "\x1c", "a", "'s", "é", "1", "!"]))
)
def test_runs_of_whitespace_may_be_encoded_apart_from_the_rest(parts):
    text, tokenizer = "".join(parts), gpt2_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        short = re.compile(tokenizer_file._LONG_RUN.pattern.replace("100000", "2"))
        patch.setattr(tokenizer_file, "_LONG_RUN", short)
        pieces = list(tokenizer._around_long_runs(text))
    assert np.concatenate(pieces).tolist() == tokenizer.encode(text)


def test_a_pattern_that_is_not_gpt2s_may_refuse_a_text():
    backtracking = Tokenizer("other", r"\s+(?!\S)|\s|\S+", gpt2_tokenizer().ranks)
    with pytest.raises(ValueError, match="Regex error"):
        backtracking.encode("x" + " " * 1_100_000 + "y")


@given(st.text())
def test_decoding_gives_the_text_back(text):
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode_to_numpy(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(text)
    assert tokenizer.decode(ids.tolist()) == text


def test_lone_surrogates_become_replacement_characters():
    tokenizer = gpt2_tokenizer()
    assert tokenizer.decode(tokenizer.encode_to_numpy("a\ud800b").tolist()) == "a\ufffdb"


def test_half_a_character_is_decoded_as_a_replacement_character():
    assert gpt2_tokenizer().decode(gpt2_tokenizer().encode("🦜")[:1]).endswith("\ufffd")


@given(st.text())
def test_token_bytes_sum_to_the_texts_bytes(text):
    lengths = gpt2_tokenizer().token_bytes()
    assert lengths[gpt2_tokenizer().encode_to_numpy(text)].sum() == len(text.encode())
    assert lengths[50256] == 0
    assert lengths.shape == (50257,)


def test_a_saved_tokenizer_is_the_same(tmp_path):
    gpt2_tokenizer().save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.ranks_sha256 == gpt2_tokenizer().ranks_sha256
    assert loaded.name == "gpt2"
    assert loaded.encode("It's 5 o'clock") == gpt2_tokenizer().encode("It's 5 o'clock")


def test_a_pickled_tokenizer_is_the_same():
    copy = pickle.loads(pickle.dumps(gpt2_tokenizer()))
    assert copy.encode("Hello world") == [15496, 995]


def test_changed_ranks_are_an_error(tmp_path):
    gpt2_tokenizer().save(tmp_path)
    lines = (tmp_path / "ranks.tiktoken").read_bytes().splitlines()
    lines[300], lines[301] = lines[301].split()[0] + b" 300", lines[300].split()[0] + b" 301"
    (tmp_path / "ranks.tiktoken").write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="sha256"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("ranks", [b"", b"\n", b"nonsense", b"QQ== 0\nQg== 2\n"])
def test_ranks_with_gaps_or_of_another_form_are_an_error(ranks):
    with pytest.raises(ValueError, match="damaged"):
        Tokenizer("mine", ".", ranks)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no meta\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"name": "x", "pattern": "."}))
    with pytest.raises(ValueError, match=r"has no text as .'ranks_sha256'"):
        load_tokenizer(tmp_path)
    gpt2_tokenizer().save(tmp_path)
    (tmp_path / "ranks.tiktoken").unlink()
    with pytest.raises(ValueError, match="missing"):
        load_tokenizer(tmp_path)


def test_damaged_shipped_ranks_are_an_error(tmp_path, monkeypatch):
    shutil.copy(byte_pairs.GPT2_RANKS, tmp_path / "ranks")
    with (tmp_path / "ranks").open("ab") as file:
        file.write(b"\n")
    monkeypatch.setattr(byte_pairs, "GPT2_RANKS", tmp_path / "ranks")
    with pytest.raises(ValueError, match="damaged"):
        gpt2_tokenizer.__wrapped__()


def test_more_ids_than_a_step_can_have_are_an_error():
    byte_pairs.check_vocabulary("tokenizer big", 2**31 - 1)
    with pytest.raises(ValueError, match="has 2147483648 ids, but .* at most 31 bits"):
        byte_pairs.check_vocabulary("tokenizer big", 2**31)


def test_two_bytes_store_a_token_as_long_as_they_hold_every_id():
    kinds = [byte_pairs.token_dtype(n).str for n in (257, 65_536, 65_537, 200_019)]
    assert kinds == ["<u2", "<u2", "<u4", "<u4"]


def test_a_checkpoint_a_run_or_a_data_set_may_be_named_for_its_tokenizer(tmp_path):
    letters = Tokenizer(
        "letters", r"\S+|\s+", byte_pairs.ranks_file(bytes([i]) for i in range(256))
    )
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step_000005"
    letters.save(checkpoint / "tokenizer")
    for named in (checkpoint, run, run / "checkpoints"):
        assert load_tokenizer(named).name == "letters"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "there is no tokenizer at .*; give a folder made by .*train_tokenizer.py, or that"),
        ("tokenizer.json", r"does not have the structure of a tokenizer .*; copy it again"),
        (
            "notes.txt",
            r"holds no tokenizer \(no meta.json\); give .*or copy the whole folder again",
        ),
    ],
)
def test_what_is_no_tokenizer_is_named_with_what_to_do(file, words, tmp_path):
    if file is not None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / file).write_text("{}")
    with pytest.raises(ValueError, match=words):
        named_tokenizer(tmp_path / "x")


def test_gpt2_is_the_name_of_the_default_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TextOptions(tokenizer=Path("gpt2"), embedded=True).chosen_tokenizer().n_vocab == 50257
