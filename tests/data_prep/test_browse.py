"""browse.py: what a data set consists of, and its documents as text."""

import json

import numpy as np
import pytest

from data_prep.browse import BrowseOptions, browse, main
from data_prep.dataset import text_search
from data_prep.dataset.documents import Documents
from data_prep.dataset.overview import draw, draw_lengths, kind_of, longest
from data_prep.dataset.shards import open_data_set
from data_prep.lookup import LookupOptions, look_up
from data_prep.text import TextOptions, _prepare_text
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.runs import run_to_end, tiny_config

TEXTS = [
    *(f"Dokument {n}: größer, 3 < {n} and " + "once upon a time. " * (n + 1) for n in range(40)),
    "Жили-были. once upon",
    "a time",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Texts as a data set; of two files."""
    folder = tmp_path_factory.mktemp("browse")
    for name, part in (("a", TEXTS[:10]), ("b", TEXTS[10:])):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    _prepare_text(
        TextOptions(
            paths=(str(folder / "a.jsonl"), str(folder / "b.jsonl")),
            out=folder / "set",
            split="first",
            val_tokens=30,
            workers=1,
        )
    )
    return open_data_set(folder / "set")


def test_the_overview_adds_up(texts):
    value, lines = browse(BrowseOptions((texts.folder,)))
    assert [s["name"] for s in value["sources"]] == ["b.jsonl", "a.jsonl"]
    assert sum(s["tokens"] for s in value["sources"]) == texts.manifest.train.tokens
    assert sum(s["documents"] for s in value["sources"]) == texts.manifest.train.documents
    assert value["sampled_bytes"] == texts.manifest.train.text_bytes  # little text: all of it
    assert sum(value["share_of_bytes"].values()) == pytest.approx(1)
    shares = value["share_of_bytes"]
    assert next(iter(shares)) == "latin"
    assert shares["cyrillic"] == 16 / value["sampled_bytes"]
    lengths = np.sort(texts.split("train").lengths)
    assert value["tokens_at_percent_of_documents"][0] == lengths[0]
    assert value["tokens_at_percent_of_documents"][100] == lengths[-1]
    assert any("source files: 2" in line for line in lines)


def test_documents_are_shown_whole_with_their_place(texts):
    value, lines = browse(BrowseOptions((texts.folder,), random=1000, text=0))
    rows = [TEXTS[d["row"] + 10 * (d["source"] == "b.jsonl")] for d in value["documents"]]
    assert [d["text"] for d in value["documents"]] == rows
    assert len(rows) == texts.manifest.train.documents == len(set(rows))
    assert lines[0].startswith("--- document 0 (a.jsonl:")
    few = browse(BrowseOptions((texts.folder,), random=3, seed=5, text=9))[0]["documents"]
    assert few == browse(BrowseOptions((texts.folder,), random=3, seed=5, text=9))[0]["documents"]
    assert {len(d["text"]) for d in few} == {9}


def test_the_longest_come_first(texts):
    documents = browse(BrowseOptions((texts.folder,), longest=3))[0]["documents"]
    assert [d["row"] for d in documents] == [29, 28, 27]  # of the second file: n = 39, 38, 37
    assert longest(np.array([3, 9, 9, 1]), 9) == [1, 2, 0, 3]
    assert draw(10**9, 3, 1) == draw(10**9, 3, 1)
    assert len(set(draw(7, 5, 0))) == 5


def test_a_text_is_found_wherever_it_was_cut_into_tokens_and_pieces(texts, monkeypatch):
    documents = Documents(texts, "train")
    wanted = b"once upon a time. once"
    expected = []
    for number in range(documents.shards.documents):
        text = documents.text(number, 0).encode()
        at = text.find(wanted)
        while at >= 0:
            after = text[at + len(wanted) :][:7].decode()
            expected.append((number, text[max(0, at - 7) : at].decode("utf-8", "ignore"), after))
            at = text.find(wanted, at + 1)
    for size in (1 << 20, 64, 7):
        monkeypatch.setattr(text_search, "_TOKENS_AT_ONCE", size)
        hits = list(text_search.find_text(documents, wanted, 7))
        if size > 7:
            # A piece begins inside a document: what stands before it is not shown.
            assert [(h.document, h.after) for h in hits] == [(d, a) for d, _, a in expected]
        assert [h.document for h in hits] == [d for d, _, _ in expected]
        for hit in hits[:50]:
            ids = documents.shards.read_document(hit.document)[hit.first_token :]
            assert b"once" in documents.tokenizer.to_bytes(ids[:2].tolist())
        if size == 1 << 20:
            assert [(h.document, h.before, h.after) for h in hits] == expected


def test_a_text_is_not_found_across_documents(texts):
    value, lines = browse(BrowseOptions((texts.folder,), find="once upona time"))
    assert (value["places"], value["complete"]) == ([], True)
    assert "0 places" in lines[-1]
    some = browse(BrowseOptions((texts.folder,), find="größer", most=2))
    assert len(some[0]["places"]) == 2
    assert "--most" in some[1][-1]
    assert browse(BrowseOptions((texts.folder,), find="größer", split="val"))[0]["places"]


def test_a_step_is_what_lookup_says(tmp_path):
    tiny_data_set(tmp_path / "data", documents=30, mean_length=30, tokenizer=small_tokenizer())
    run_to_end(tiny_config(tmp_path / "data", tmp_path / "run", steps=3))
    options = BrowseOptions((tmp_path / "data",), step=1, run=tmp_path / "run", text=100)
    same = look_up(LookupOptions((tmp_path / "data",), tmp_path / "run", step=1))[0]
    assert browse(options)[0]["documents"] == same["documents"]


def test_lengths_are_drawn_also_if_all_are_equal(texts, tmp_path):
    draw_lengths(np.array([5, 5], np.uint32), "two", tmp_path / "equal.png")
    browse(BrowseOptions((texts.folder,), plot=tmp_path / "lengths.svg"))
    assert (tmp_path / "equal.png").stat().st_size > 1000
    assert "<svg" in (tmp_path / "lengths.svg").read_text()


@pytest.mark.parametrize(
    ("character", "kind"),
    [("é", "latin"), ("я", "cyrillic"), ("語", "han"), ("\uff21", "latin"), ("7", "digits"),
     (",", "punctuation"), ("+", "symbols"), ("\n", "white space"), ("\ufffd", "not decodable"),
     ("\u0301", "accents"), ("º", "latin"), ("µ", "greek")],
)  # fmt: skip
def test_characters_have_kinds(character, kind):
    assert kind_of(character) == kind


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--random", "1", "--longest", "1"], "give one of them"),
        (["--random", "0"], "random=0"),
        (["--step", "1"], "give both or neither"),
        (["--find", ""], "give a text"),
        (["--plot", "a.doc"], ".png"),
    ],
)
def test_bad_questions_are_refused(texts, monkeypatch, capsys, words, cure):
    monkeypatch.setattr("sys.argv", ["browse.py", str(texts.folder), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert cure in capsys.readouterr().err
