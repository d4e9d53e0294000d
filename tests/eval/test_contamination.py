"""eval/contamination.py finds all evaluation items in the training text, and no others."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset.manifest import SplitEntry, split_entry
from data_prep.dataset.shards import DataSet, open_data_set, shard_entry
from data_prep.tokenizer import gpt2_tokenizer
from eval.contamination import (
    Arguments,
    item_sets,
    main,
    search_items,
)
from eval.text_search.report import contamination_report, contamination_table
from tests.data_sets import rewrite_manifest, save_shard, tiny_data_set
from tests.launching import python

# Fourteen words, and an ending of ten.
CONTEXT = "Early every morning the old baker walks down to the river mill and"
ENDING = "carries home two heavy sacks of flour on his shoulders."
OTHERS = ["sings.", "paints the whole of the mill in a very bright yellow.", "swims."]
FILLER = "Nothing of interest is told on this page. " * 3


def data_of(folder: Path, *shards: list[str]) -> DataSet:
    """A data set whose train shards have these documents."""
    tiny_data_set(folder, lengths=[4] * len(shards), val_fraction=0, shards=len(shards))
    tokenizer = gpt2_tokenizer()
    entries = []
    for number, texts in enumerate(shards):
        documents = [[tokenizer.end_of_text, *tokenizer.encode(text)] for text in texts]
        places = np.stack([np.zeros(len(texts)), np.arange(len(texts))], axis=1)
        name = f"train_{number:06d}"
        save_shard(
            folder, name, np.concatenate(documents), np.array([*map(len, documents)]), places
        )
        entries.append(shard_entry(folder, name, sum(len(text.encode()) for text in texts)))
    counts = np.ones(tokenizer.n_vocab, np.int64)
    train: SplitEntry = split_entry(tuple(entries), counts)
    rewrite_manifest(folder, train=train)
    return open_data_set(folder)


def items_file(path: Path, *rows: dict) -> Path:
    lines = [
        json.dumps({"ctx": CONTEXT, "endings": [ENDING, *OTHERS], "label": 0} | r) for r in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def report(folder: Path, shards: list[list[str]], *rows: dict, **arguments) -> dict:
    """The part of the report about these items, searched for in these documents."""
    data = data_of(folder / "set", *shards)
    path = items_file(folder / "items.jsonl", *(rows or ({},)))
    whole = searched([data], path, **arguments)
    return whole["items"][str(path)]


def searched(sets: list[DataSet], path: Path, words: int = 13, workers: int = 1) -> dict:
    """The report on the items of a file in these data sets."""
    folders = tuple(data.folder for data in sets)
    chosen = Arguments(folders, items_file=(path,), words=words, workers=workers)
    found = item_sets(chosen)
    items = [item for item_set in found for item in item_set.items]
    outcomes = search_items(sets, items, chosen)
    whole = contamination_report(sets, found, outcomes, "train", chosen.words, chosen.shortest)
    assert contamination_table(whole)
    return whole


def words(text: str, first: int, count: int) -> str:
    return " ".join(text.split()[first : first + count])


def test_an_ngram_is_found_with_its_item_shard_and_document(tmp_path):
    planted = f"{FILLER} {words(f'{CONTEXT} {ENDING}', 3, 13)} {FILLER}"
    other = {"ctx": "Quite another story " * 5, "ind": 4}
    found = report(tmp_path, [[FILLER] * 3, [FILLER, planted, planted]], other, {"ind": 9})
    assert found["id_key"] == "ind"
    assert found["ngram"]["found_ids"] == [9]
    assert found["ngram"]["share_of_testable"] == 0.5
    assert found["ngram"]["first_found"] == [
        {
            "id": 9,
            "shard": "train_000001",
            "document": 4,
            "words": words(f"{CONTEXT} {ENDING}", 3, 13).lower(),
        }
    ]
    assert found["right_ending"]["found"] == 0


@pytest.mark.parametrize(("count", "found"), [(12, 0), (13, 1)])
def test_twelve_of_thirteen_words_are_not_enough(tmp_path, count, found):
    planted = f"{FILLER} {words(CONTEXT, 0, count)} {FILLER}"
    assert report(tmp_path, [[planted]])["ngram"]["found"] == found


def test_part_of_a_word_is_not_found(tmp_path):
    planted = f"{words(CONTEXT, 0, 13)}like {FILLER}"
    assert report(tmp_path, [[planted]])["ngram"]["found"] == 0


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda text: text.replace(" ", "  \n\t"),
        lambda text: text.replace(" ", "\u2019, \u00a0\u201c"),
        lambda text: text.replace("r", "r-"),
        lambda text: text.replace(" ", " \u2014 ... "),
    ],
    ids=["case", "white space", "curly quotes", "hyphens", "dashes"],
)
def test_punctuation_case_and_white_space_do_not_hide_an_ngram(tmp_path, change):
    assert report(tmp_path, [[FILLER, change(CONTEXT)]])["ngram"]["found"] == 1


def test_the_marks_of_hellaswag_do_not_hide_an_ngram(tmp_path):
    item = {"ctx": f"[header] {words(CONTEXT, 0, 7)} [step] {words(CONTEXT, 7, 7)} [title]"}
    assert report(tmp_path, [[CONTEXT]], item)["ngram"]["found"] == 1


def test_an_ngram_across_a_document_boundary_does_not_count(tmp_path):
    halves = [words(CONTEXT, 0, 7), words(CONTEXT, 7, 7)]
    assert report(tmp_path, [halves])["ngram"]["found"] == 0


def test_the_text_of_end_of_text_inside_a_document_is_not_a_boundary(tmp_path):
    text = f"{words(CONTEXT, 0, 7)} <|endoftext|> {words(CONTEXT, 7, 7)}"
    item = {"ctx": text}
    assert report(tmp_path, [[text]], item)["ngram"]["found"] == 1


def test_a_right_ending_and_a_wrong_ending_are_distinguished(tmp_path):
    shards = [[FILLER, f"He {OTHERS[1]} Then"], [f"He {ENDING}"]]
    found = report(tmp_path, shards, {}, {"label": 2})
    right, either = found["right_ending"], found["any_ending"]
    assert [(f["id"], f["document"]) for f in right["first_found"]] == [(0, 2), (1, 1)]
    assert [(f["id"], f["document"]) for f in either["first_found"]] == [(0, 1), (1, 1)]
    assert either["first_found"][0]["words"] == OTHERS[1].lower().rstrip(".")
    assert found["ngram"]["found"] == 0


def test_an_ending_of_which_the_last_word_is_missing_is_not_found(tmp_path):
    assert report(tmp_path, [[words(ENDING, 0, 9)]])["right_ending"]["found"] == 0


def test_a_short_item_is_searched_as_a_whole_and_a_shorter_one_is_reported(tmp_path):
    nine = {"ctx": "A cat walks slowly over the", "endings": ["warm garden wall.", "sea."]}
    seven = {"ctx": "A cat walks over the", "endings": ["garden wall.", "sea."]}
    text = "See: a cat walks slowly over the warm garden wall, and a cat walks over the garden wall"
    found = report(tmp_path, [[text]], nine, seven)
    assert found["ngram"]["testable"] == 1
    assert found["ngram"]["found_ids"] == [0]
    assert found["ngram"]["untestable_ids"] == [1]
    assert found["any_ending"]["share_of_testable"] is None


def test_neither_workers_nor_piece_size_change_what_is_found(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    vocabulary = ["caf\u00e9", "\u6c34", "na\u00efve", "\U0001f600x", "plain", "words", "\u2014"]
    texts = [" ".join(random.choice(vocabulary, 80)) for _ in range(60)]
    rows = [{"ctx": words(text, 9, 16), "endings": [text, "x"]} for text in texts[::7]]
    monkeypatch.setattr("eval.text_search.shard_search.RANGE_TOKENS", 1500)
    shards = [texts[:25], texts[25:]]
    expected = report(tmp_path / "1", shards, *rows, words=5)
    assert expected["ngram"]["found"] == expected["right_ending"]["found"] == len(rows)
    two = report(tmp_path / "2", shards, *rows, words=5, workers=2)
    monkeypatch.setattr("eval.text_search.shard_search.PIECE_TOKENS", 3)
    small = report(tmp_path / "3", shards, *rows, words=5)
    assert expected == two == small


def test_of_several_data_sets_each_is_reported_and_all_together(tmp_path):
    one = data_of(tmp_path / "one", [FILLER, CONTEXT])
    two = data_of(tmp_path / "two", [CONTEXT, f"He {OTHERS[1]} Then"])
    other = {"ctx": "The young miller sells nothing but flour in the old town by day and"}
    path = items_file(tmp_path / "items.jsonl", {}, other)
    whole = searched([one, two], path)
    both = whole["items"][str(path)]
    assert both["ngram"]["found_ids"] == [0]
    assert both["ngram"]["first_found"][0]["data"] == str(one.folder)
    assert both["any_ending"]["found"] == 2
    assert both["any_ending"]["first_found"][0]["data"] == str(two.folder)
    each = [items[str(path)] for items in whole["items_by_data"].values()]
    assert [found["ngram"]["found"] for found in each] == [1, 1]
    assert each[1] == searched([two], path)["items"][str(path)]
    assert [found["any_ending"]["found"] for found in each] == [0, 2]
    assert [data["fingerprint"] for data in whole["data"]] == [one.fingerprint, two.fingerprint]
    assert contamination_table(whole).count(f"  in {two.folder}") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{tmp}/nowhere"], "there is no data set at"),
        (["--data", "{tmp}/set", "{tmp}/set"], "set is named twice; name each data set once"),
        (["--data", "{tmp}/set", "--tasks", "helaswag"], "helaswag"),
        (["--data", "{tmp}/set", "--split", "val"], "has no val tokens"),
        (["--data", "{tmp}/set", "--items-file", "{tmp}/empty.jsonl"], "holds no items"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys, words, message):
    data_of(tmp_path / "set", [FILLER])
    (tmp_path / "empty.jsonl").write_text("\n")
    options = ["--tasks", "pydoc_choice", *(word.format(tmp=tmp_path) for word in words)]
    monkeypatch.setattr("sys.argv", ["eval/contamination.py", *options])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_the_script_prints_a_table_and_writes_what_a_report_can_cite(tmp_path):
    data = data_of(tmp_path / "set", [FILLER, CONTEXT])
    path = items_file(tmp_path / "items.jsonl", {})
    out = tmp_path / "out.json"
    options = ["--data", str(data.folder), "--items-file", str(path), "--json", str(out)]
    done = python("eval/contamination.py", *options, "--tasks", "pydoc_choice")
    assert done.returncode == 0, done.stderr
    assert "100.000%  13 words in a row" in done.stdout
    written = json.loads(out.read_text())
    assert written["data"]["fingerprint"] == data.fingerprint
    assert written["items"][str(path)]["ngram"]["found_ids"] == [0]
    assert written["items"]["pydoc_choice"]["items"] == 48
