"""tiktoken's files: known by their names, with special ids and gaps as tiktoken has them."""

import pytest
import tiktoken

from data_prep.tokenizer import gpt2_tokenizer, load_tokenizer, named_tokenizer
from storage.byte_pairs import GPT2_RANKS, PATTERNS, ranks_file
from storage.vocabularies import tiktoken_files
from tests.launching import REPO
from tests.tokenizer_families import NAUGHTY

PUBLISHED = sorted((REPO / "data" / "tokenizers").glob("*.tiktoken"))
RANKS = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"12", b"123", b"\n\n"]
SMALL = {"<|endoftext|>": 264, "<|endofprompt|>": 270}


@pytest.fixture
def cl100k(tmp_path, monkeypatch):
    """A file of a few ranks named like an encoding, with a gap before its special tokens."""
    small = tiktoken_files._Encoding("gpt4", len(RANKS), SMALL)
    monkeypatch.setitem(tiktoken_files._ENCODINGS, "cl100k_base", small)
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(ranks_file(RANKS))
    return path


def test_ids_are_tiktokens_and_special_ones_are_given_by_no_text(cl100k, tmp_path):
    tokenizer = named_tokenizer(cl100k)
    theirs = tiktoken.Encoding(
        "x",
        pat_str=PATTERNS["gpt4"],
        mergeable_ranks={token: rank for rank, token in enumerate(RANKS)},
        special_tokens=SMALL,
    )
    assert (tokenizer.end_of_text, tokenizer.n_vocab) == (theirs.eot_token, theirs.n_vocab)
    tokenizer.save(tmp_path / "ours")
    for text in NAUGHTY:
        ids = theirs.encode_ordinary(text)
        assert tokenizer.encode(text) == load_tokenizer(tmp_path / "ours").encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([264, 263, 270]) == "<|endoftext|>\ufffd<|endofprompt|>"


@pytest.mark.parametrize("name", ["gpt2", "r50k_base"])
def test_gpt2s_file_is_gpt2s_tokenizer(name, tmp_path):
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(GPT2_RANKS.read_bytes())
    found = named_tokenizer(path)
    assert (found.name, found.ranks_sha256) == ("gpt2", gpt2_tokenizer().ranks_sha256)


def test_llama_3s_file_is_known_by_its_name_and_sentencepieces_is_refused(tmp_path, monkeypatch):
    small = tiktoken_files._Encoding(
        "gpt4", len(RANKS), {"<|end_of_text|>": 262}, "<|end_of_text|>"
    )
    monkeypatch.setitem(tiktoken_files._ENCODINGS, "llama3", small)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(ranks_file(RANKS))
    assert named_tokenizer(tmp_path).end_of_text == named_tokenizer(path).end_of_text == 262
    path.write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    with pytest.raises(ValueError, match="is a tokenizer of SentencePiece; only byte-level BPE"):
        named_tokenizer(tmp_path)


def test_llama_3_has_its_256_special_tokens():
    special = tiktoken_files._ENCODINGS["llama3"].special
    assert len(special) == 256
    assert (special["<|end_of_text|>"], special["<|eot_id|>"]) == (128_001, 128_009)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.tiktoken", ranks_file(RANKS), r"not the pattern .*; give the file the name of its"),
        ("cl100k_base.tiktoken", ranks_file(RANKS[:-1]), "261 ranks, but cl100k_base has 262"),
        ("cl100k_base.tiktoken", b"QQ== 0\n" * 262, "damaged|without gaps or repeats"),
        ("notes.txt", b"some text\n", "is no tokenizer.json and no file of tiktoken"),
        ("empty.tiktoken", b"", "is no tokenizer.json and no"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, content, message, cl100k):
    path = cl100k.with_name(name)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        named_tokenizer(path)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_file_has_tiktokens_ids(path):
    tokenizer = named_tokenizer(path)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in NAUGHTY] == NAUGHTY
