"""Data sets of tokenizers of others: the library's ids, by the fast or the slow way."""

import json

import pytest

from data_prep.dataset.shards import open_data_set
from data_prep.preparation import encoder as encoder_module
from data_prep.preparation import unit as unit_module
from data_prep.preparation.encoder import Encoder, fast_encoder
from data_prep.preparation.options import PrepareOptions
from data_prep.preparation.prepare import prepare
from data_prep.sources.file_source import file_source
from data_prep.tokenizer import named_tokenizer
from tests.tokenizer_families import NAUGHTY, family, library_ids

TEXTS = [text for text in NAUGHTY if text.strip()] + [f"Story {n} of e\u0301." for n in range(20)]


def made(folder, path, **changes):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    options = PrepareOptions(workers=1, tokenizer=path, split="first", val_tokens=50, **changes)
    data = prepare(file_source([str(folder / "a.jsonl")]), folder / "out", options)
    return data, {p.name: p.read_bytes() for p in (folder / "out").glob("*.npy")}


class Wrong:
    """Gives the first token twice."""

    name = "wrong"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, text):
        ids = self.tokenizer.encode_to_numpy(text.decode())
        return ids[[0, *range(len(ids))]]

    def may_differ(self, text):
        return False


@pytest.mark.parametrize("kind", ["llama3", "qwen2", "smollm"])
def test_a_data_set_has_the_librarys_ids_and_opens_documents_with_end_of_text(kind, tmp_path):
    path = family(kind, tmp_path / "theirs")
    data, _ = made(tmp_path, path)
    tokenizer = named_tokenizer(path)
    split = data.split("train")
    rows = [split.read_document(i).tolist() for i in range(split.documents)]
    val = data.split("val")
    rows = [val.read_document(i).tolist() for i in range(val.documents)] + rows
    assert rows == [[tokenizer.end_of_text, *library_ids(path, text)] for text in TEXTS]
    written = sum(len(tokenizer.normalised(text.encode())) for text in TEXTS)
    assert data.manifest.train.text_bytes + data.manifest.val.text_bytes == written
    assert data.manifest.tokenizer.n_vocab == tokenizer.n_vocab
    assert open_data_set(tmp_path / "out").tokenizer().ranks_sha256 == tokenizer.ranks_sha256


def test_a_wrong_fast_encoder_is_disabled_and_the_bytes_are_the_librarys(tmp_path, monkeypatch):
    path = family("qwen2", tmp_path / "theirs")
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    _, right = made(tmp_path / "right", path)
    monkeypatch.setattr(unit_module, "fast_encoder", Wrong)
    _, wrong = made(tmp_path / "wrong", path)
    assert right == wrong


def test_of_a_long_text_the_beginning_is_compared(tmp_path, monkeypatch):
    tokenizer = named_tokenizer(family("qwen2", tmp_path))
    monkeypatch.setattr(encoder_module, "_MOST_COMPARED", 50)
    read = []
    given = tokenizer.encode_to_numpy
    monkeypatch.setattr(
        tokenizer, "encode_to_numpy", lambda text: [read.append(len(text.encode())), given(text)][1]
    )
    texts = [("日本語 and the rest " * 20).encode(), b"short"]
    tokens, _ = Encoder(tokenizer, fast_encoder(tokenizer)).encode(texts, [(0, 0), (0, 1)])
    assert read == [49, 5]
    rows = [given(text.decode()).tolist() for text in texts]
    assert tokens.tolist() == [700, *rows[0], 700, *rows[1]]
