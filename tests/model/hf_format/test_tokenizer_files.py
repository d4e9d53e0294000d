"""Exported tokenizers give the same ids in transformers, and come back."""

import json

import pytest
import transformers

from data_prep.tokenizer import gpt2_tokenizer, load_tokenizer, named_tokenizer, tokenizer_of
from model.hf_format.tokenizer_files import write_hf_tokenizer
from storage.atomic import write_json
from storage.byte_pairs import PATTERNS, Additions, BytePairs, ranks_file_of
from storage.vocabularies.any_tokenizer import read_any_tokenizer, read_library_files
from storage.vocabularies.printable_bytes import byte_characters
from tests.launching import REPO
from tests.model.hf_format.models import (
    CL100K_LIKE,
    exported,
    imported,
    only,
    our_checkpoint,
    small_tokenizer,
)
from tests.tokenizer_families import NAUGHTY, family

SHARED_CACHE = REPO.parent / "shared" / "data" / "tiktoken_cache"
TRICKY = [
    "",
    " ",
    "Hello  world   \n\n\n  x",
    "It's we'll THEY'VE 'S 'tis",
    "naïve café — “quotes” ☃ 日本語テキスト مرحبا ไทย",
    "🦜👩‍👩‍👧‍👦🇮🇸 e\u0301\u200b\u00a0\u3000x\ufeff",
    "def f(x):\n\treturn {'a': x**2}  # 3.14159 0x1F\r\n",
    "12345678 ½²³ ⅷ",
    "aaaaaaaaaaaaaaaaaaaaaaa -------- \t\t\t \x00\x7f\x85",
]


@pytest.mark.parametrize(
    "names", [("tokenizer.json", "tokenizer_config.json"), ("vocab.json", "merges.txt")]
)
def test_the_exported_tokenizer_gives_our_ids(gpt2_files, tmp_path, names):
    theirs = transformers.AutoTokenizer.from_pretrained(only(gpt2_files, tmp_path / "t", *names))
    ours = gpt2_tokenizer()
    for text in [*TRICKY, (REPO / "README.md").read_text(), (REPO / "Makefile").read_text()]:
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (len(theirs), theirs.eos_token_id, theirs.bos_token_id) == (50257, 50256, 50256)
    assert theirs.encode("a<|endoftext|>b") == [64, 50256, 65]


def test_the_exported_tokenizer_knows_the_context_length(gpt2_files):
    theirs = transformers.AutoTokenizer.from_pretrained(gpt2_files)
    assert theirs.model_max_length == 48
    assert theirs.is_fast


def test_a_tokenizer_with_another_pattern_gives_our_ids_and_comes_back(tmp_path):
    ours = small_tokenizer(CL100K_LIKE)
    our_checkpoint(tmp_path / "ours", ours)
    exported(tmp_path / "ours", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*TRICKY, "the then fox quick brown\n\n 1234"]:
        assert theirs.encode(text) == ours.encode(text)
    imported(tmp_path / "out", tmp_path / "again")
    again = load_tokenizer(tmp_path / "again" / "tokenizer")
    assert (again.pattern, again.ranks_sha256) == (ours.pattern, ours.ranks_sha256)


@pytest.mark.skipif(not SHARED_CACHE.exists(), reason="OpenAI's own files are not available")
def test_vocabulary_and_merges_are_openais(gpt2_files):
    originals = {path.read_bytes().strip() for path in SHARED_CACHE.iterdir()}
    assert (gpt2_files / "merges.txt").read_bytes().strip() in originals
    vocabulary = json.loads((gpt2_files / "vocab.json").read_text())
    assert any(json.loads(o) == vocabulary for o in originals if o.startswith(b"{"))


def test_vocabulary_and_merges_alone_give_gpt2s_ranks(gpt2_files, tmp_path):
    found = read_library_files(only(gpt2_files, tmp_path / "t", "vocab.json", "merges.txt"), "x")
    assert found is not None
    assert found.ranks == gpt2_tokenizer().ranks
    assert found.pattern == gpt2_tokenizer().pattern


def test_every_byte_has_its_own_printable_character():
    assert len(set(byte_characters().values())) == 256
    assert byte_characters()[ord(" ")] == "Ġ"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="Unigram"), "only byte-level BPE"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "without a normalizer"),
        (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "adds a space before each"),
        (lambda t: t["pre_tokenizer"].update(type="Whitespace"), "no byte-level BPE: it splits"),
        (
            lambda t: t["model"]["vocab"].pop("<|endoftext|>") and t["added_tokens"].clear(),
            "no end-of-text of a known name .* with --end-of-text",
        ),
        (lambda t: t.pop("model"), "does not have the structure of a tokenizer"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(gpt2_files, tmp_path, change, message):
    content = json.loads((gpt2_files / "tokenizer.json").read_text())
    change(content)
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(ValueError, match=message):
        read_library_files(tmp_path, "x")


@pytest.mark.parametrize("pattern", ["((((", 5])
def test_a_pattern_that_is_none_is_refused(tmp_path, pattern):
    our_checkpoint(tmp_path / "ours", small_tokenizer(CL100K_LIKE))
    exported(tmp_path / "ours", tmp_path / "out")
    path = tmp_path / "out" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    write_json(path, content)
    with pytest.raises(ValueError, match=r"tokenizer\.json: tokenizers cannot read it"):
        imported(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "smollm"])
def test_a_family_is_exported_with_its_ids_and_comes_back_the_same(kind, tmp_path):
    ours = named_tokenizer(family(kind, tmp_path / "published"))
    pairs = read_any_tokenizer(tmp_path / "published")
    write_hf_tokenizer(tmp_path, pairs, 48)
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in NAUGHTY:
        # Names of special tokens are tokens to transformers; to us they are text.
        if "<|" not in text:
            assert theirs.encode(text) == ours.encode(text)
            assert theirs.decode(ours.encode(text)) == ours.normalised(text.encode()).decode()
    assert theirs.eos_token_id == theirs.bos_token_id == ours.end_of_text
    assert read_any_tokenizer(tmp_path).ranks_sha256 == ours.ranks_sha256


def test_another_end_of_text_comes_back(tmp_path):
    pairs = read_any_tokenizer(family("llama3", tmp_path / "published"), "<|eot_id|>")
    write_hf_tokenizer(tmp_path, pairs, 48)
    assert read_any_tokenizer(tmp_path).end_token == "<|eot_id|>"


def test_an_encoding_of_tiktoken_is_exported_with_gaps_and_whole_words(tmp_path):
    tokens = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"thequick": 258}
    special = (("<|endoftext|>", 260), ("<|endofprompt|>", 270))
    pairs = BytePairs("x", PATTERNS["gpt4"], ranks_file_of(tokens), Additions(260, special))
    write_hf_tokenizer(tmp_path, pairs, 48)
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = tokenizer_of(pairs)
    for text in [*TRICKY, "the thequick quick"]:
        assert theirs.encode(text) == ours.encode(text)
    assert 258 in theirs.encode("thequick")
    assert theirs.encode("<|endofprompt|>") == [270]
    again = tokenizer_of(read_any_tokenizer(tmp_path))
    assert (again.n_vocab, again.end_of_text) == (271, 260)
    assert again.encode("thequick") == [258]


def test_a_model_with_a_tokenizer_json_comes_back_with_it(tmp_path):
    ours = named_tokenizer(family("qwen2", tmp_path / "published"))
    our_checkpoint(tmp_path / "ours", ours)
    exported(tmp_path / "ours", tmp_path / "out")
    imported(tmp_path / "out", tmp_path / "again")
    again = load_tokenizer(tmp_path / "again" / "tokenizer")
    assert again.ranks_sha256 == ours.ranks_sha256
