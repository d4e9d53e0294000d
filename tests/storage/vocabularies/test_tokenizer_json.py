"""A tokenizer.json of any family gives the library's ids, also from our own folder."""

import json
import pickle

import numpy as np
import pytest

from data_prep.preparation.encoder import fast_encoder
from data_prep.tokenizer import Tokenizer, load_tokenizer, named_tokenizer
from storage.atomic import write_json
from tests.launching import REPO
from tests.tokenizer_families import FAMILIES, NAUGHTY, family, library_ids

# Published files, where a person has put them: data/tokenizers/NAME/tokenizer.json.
PUBLISHED = sorted((REPO / "data" / "tokenizers").glob("*/tokenizer.json"))


def assert_the_librarys_ids(path):
    tokenizer = named_tokenizer(path)
    fast = fast_encoder(tokenizer) if tokenizer.additions else None
    for text in NAUGHTY:
        ids = library_ids(path, text)
        read = tokenizer.normalised(text.encode())
        assert tokenizer.encode(text) == ids
        assert tokenizer.to_bytes(ids) == read
        assert tokenizer.token_bytes()[ids].sum() == len(read)
        if fast is not None and not fast.may_differ(read):
            assert fast.encode(read).tolist() == ids
    return tokenizer, fast


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_has_the_librarys_ids_fast_and_from_our_folder(kind, tmp_path):
    tokenizer, fast = assert_the_librarys_ids(family(kind, tmp_path / "theirs"))
    assert (fast is not None) == (kind in ("llama3", "qwen2"))
    tokenizer.save(tmp_path / "ours")
    for again in (load_tokenizer(tmp_path / "ours"), pickle.loads(pickle.dumps(tokenizer))):
        assert again.ranks_sha256 == tokenizer.ranks_sha256
        assert again.encode(NAUGHTY[4]) == tokenizer.encode(NAUGHTY[4])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_a_published_tokenizer_has_the_librarys_ids(path):
    assert_the_librarys_ids(path)


@pytest.mark.parametrize(
    ("kind", "end", "ids"),
    [("gpt2", 700, 701), ("llama3", 702, 704), ("qwen2", 700, 704), ("smollm", 0, 700)],
)
def test_end_of_text_is_found_and_other_special_tokens_keep_their_ids(kind, end, ids, tmp_path):
    tokenizer = named_tokenizer(family(kind, tmp_path))
    assert tokenizer.end_of_text == end
    assert tokenizer.token_bytes()[end] == 0
    assert tokenizer.decode([end]) in ("<|endoftext|>", "<|end_of_text|>")
    assert tokenizer.n_vocab == ids


def test_bytes_of_many_ids_at_once_know_special_tokens_and_gaps(tmp_path):
    path = family("qwen2", tmp_path)
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["id"] += 20
        content["model"]["vocab"][token["content"]] = token["id"]
    write_json(path, content)
    tokenizer = named_tokenizer(path)
    ids = [*tokenizer.encode("a <think>b"), 721, 710]
    written, ends = tokenizer.bytes_and_ends(np.array(ids))
    assert written == b"a <think>b"
    assert ends[-3:].tolist() == [10, 10, 10]
    assert tokenizer.decode(ids) == "a <think>b<|im_start|>\ufffd"
    assert (tokenizer.n_vocab, tokenizer.end_of_text) == (724, 720)


def test_merges_that_do_not_follow_from_the_ids_are_the_librarys_own(tmp_path):
    path = family("llama3", tmp_path)
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][::-1]
    write_json(path, content)
    tokenizer, fast = assert_the_librarys_ids(path)
    assert (tokenizer.pattern, fast) == ("", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(byte_fallback=True), "only byte-level BPE can be used"),
        (lambda t: t["model"].update(type="WordPiece"), "of type WordPiece; only byte-level BPE"),
        (lambda t: t["model"].update(merges=[["a", "never"]]), "structure|cannot read it"),
        (lambda t: t["added_tokens"][2].update(lstrip=True), "swallow the spaces beside them"),
        (lambda t: t["added_tokens"][0].update(id=3), "the id 3, but tokenizers uses 700"),
        (lambda t: t["model"]["vocab"].update({"<|endoftext|>": 2**30}), "but tokenizers uses"),
        (lambda t: t["added_tokens"][0].update(id=-1), "structure of a tokenizer"),
        (lambda t: t["model"]["vocab"].pop("a"), "no token for 1 of the 256|structure|cannot"),
        (lambda t: t["added_tokens"][0].update(content="<|mine|>"), "with --end-of-text"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(change, message, tmp_path):
    path = family("qwen2", tmp_path)
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)
    with pytest.raises(ValueError, match=message) as caught:
        named_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pick", [str.isascii, "ĠĠĠĠ".__eq__])
def test_a_special_token_that_merges_give_is_refused(pick, tmp_path):
    path = family("qwen2", tmp_path)
    content = json.loads(path.read_text())
    known = next(text for text in content["model"]["vocab"] if len(text) == 4 and pick(text))
    content["added_tokens"][1:] = [
        {**content["added_tokens"][0], "content": known, "id": content["model"]["vocab"][known]}
    ]
    write_json(path, content)
    with pytest.raises(ValueError, match=f"has the special token '{known}' as an ordinary one"):
        named_tokenizer(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 3}', b"[" * 99_999])
def test_a_damaged_file_is_one_sentence(content, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="copy it again"):
        named_tokenizer(tmp_path / "tokenizer.json")


def test_end_of_text_may_be_named(tmp_path):
    path = family("llama3", tmp_path / "theirs")
    tokenizer = named_tokenizer(path, "<|eot_id|>")
    assert tokenizer.end_of_text == 703
    assert tokenizer.ranks_sha256 != named_tokenizer(path).ranks_sha256
    tokenizer.save(tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").end_of_text == 703
    with pytest.raises(
        ValueError, match="no token '<x>' for --end-of-text; its special tokens are"
    ):
        named_tokenizer(path, "<x>")
    with pytest.raises(ValueError, match="has <|eot_id|> as end-of-text, not"):
        named_tokenizer(tmp_path / "ours", "<|end_of_text|>")
    with pytest.raises(ValueError, match="omit --end-of-text"):
        named_tokenizer(None, "<|end_of_text|>")


def test_an_ordinary_token_that_is_named_end_of_text_is_given_by_no_text(tmp_path):
    path = family("qwen2", tmp_path)
    tokenizer = named_tokenizer(path, "<think>")
    assert tokenizer.end_of_text == 702
    assert 702 not in tokenizer.encode("a<think>b")
    assert 703 in tokenizer.encode("a</think>b")


def test_a_folder_with_another_tokenizer_json_is_damaged(tmp_path):
    tokenizer = named_tokenizer(family("qwen2", tmp_path / "theirs"))
    tokenizer.save(tmp_path / "ours")
    path = tmp_path / "ours" / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"NFC", b"NFD"))
    with pytest.raises(ValueError, match=r"tokenizer.json has sha256 .*; it is damaged, copy"):
        load_tokenizer(tmp_path / "ours")


def test_a_pattern_that_leaves_text_out_is_the_librarys_own(tmp_path):
    path = family("qwen2", tmp_path)
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a"
    write_json(path, content)
    tokenizer, fast = assert_the_librarys_ids(path)
    assert (tokenizer.pattern, fast) == ("", None)
    assert isinstance(tokenizer, Tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"special_tokens": []},
        {"special_tokens": {"<|endoftext|>": "700"}},
        {"end_of_text": None},
        {"end_of_text": 5},
        {"words": {"<think>": 700}},
    ],
)
def test_a_damaged_folder_without_a_fingerprint_is_one_sentence(change, tmp_path):
    named_tokenizer(family("qwen2", tmp_path / "theirs")).save(tmp_path / "ours")
    meta = json.loads((tmp_path / "ours" / "meta.json").read_text())
    del meta["fingerprint"]
    write_json(tmp_path / "ours" / "meta.json", meta | change)
    with pytest.raises(ValueError, match=r"is damaged|copy it again|name one of its special"):
        load_tokenizer(tmp_path / "ours")
