"""lookup.py: from a step to its documents and back, on a run of more than one epoch."""

import json
import shutil

import pytest

from data_prep.dataset.shards import open_data_set
from data_prep.lookup import LookupOptions, look_up, main
from data_prep.order.training_stream import TrainingStream
from tests.data_sets import small_tokenizer, tiny_data_set
from tests.launching import python
from tests.runs import run_to_end, tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """20 steps of 8 windows of 16 tokens: between two and three epochs."""
    folder = tmp_path_factory.mktemp("made")
    tiny_data_set(folder / "data", documents=50, mean_length=30, tokenizer=small_tokenizer())
    run_to_end(tiny_config(folder / "data", folder / "run", steps=20))
    return folder


def ask(folder, **question):
    return look_up(LookupOptions((folder / "data",), folder / "run", **question))


def train(folder):
    return open_data_set(folder / "data").split("train")


def test_the_documents_of_all_steps_are_the_stream(made):
    shards = train(made)
    read = []
    for step in range(20):
        for part in ask(made, step=step)[0]["documents"]:
            tokens = shards.read_document(part["document"])
            read += tokens[part["first_token"] :][: part["tokens"]].tolist()
    assert read == TrainingStream(shards, 1337).read(0, 20 * 128).tolist()


def test_a_document_was_read_in_the_steps_that_list_it(made):
    listed = {}
    for step in range(20):
        for part in ask(made, step=step)[0]["documents"]:
            listed.setdefault((part["document"], part["epoch"]), []).append((step, part["tokens"]))
    for document in range(train(made).documents):
        for seen in ask(made, document=document)[0]["seen"]:
            parts = listed.pop((document, seen["epoch"]))
            assert [seen["first_step"], seen["last_step"]] == [parts[0][0], parts[-1][0]]
            assert seen["tokens"] == sum(tokens for _, tokens in parts)
            assert seen["first_step"] == seen["first_window"] // 8
            assert seen["last_step"] == seen["last_window"] // 8
    assert not listed


def test_a_complete_epoch_reads_every_document_once_and_drops_nothing(made):
    shards = train(made)
    epoch = ask(made, steps=":")[0]["epochs"][0]
    assert epoch == {"documents": shards.documents, "tokens": shards.tokens}
    found = ask(made, steps=":")[0]
    assert found["documents_seen"] == shards.documents
    assert set(found["documents_by_times_seen"]) == {2, 3}
    assert (found["tokens"], found["tokens_dropped"], found["breaks"]) == (20 * 128, 0, [])
    assert found["most_times_in_one_epoch"] == 1


def test_a_range_of_steps_counts_its_own_documents(made):
    found = ask(made, steps="3:5")[0]
    parts = [p for step in (3, 4) for p in ask(made, step=step)[0]["documents"]]
    assert found["documents_seen"] == len({part["document"] for part in parts})
    assert found["tokens"] == sum(part["tokens"] for part in parts) == 256


def test_a_missing_line_is_a_break_and_dropped_tokens(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "made", symlinks=True)
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9] + lines[10:]))
    found = ask(folder, steps=":")[0]
    assert found["tokens_dropped"] == 128
    assert "step 8 is followed by step 10" in found["breaks"][0]


def test_a_line_of_a_window_that_no_run_reaches_costs_no_time(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "made", symlinks=True)
    path = folder / "run" / "metrics.jsonl"
    path.write_text(
        path.read_text().replace('"data/first_window": 72', f'"data/first_window": {1 << 39}')
    )
    assert len(ask(folder, document=7)[0]["seen"]) in (2, 3)


def test_a_document_is_found_by_file_and_row(made):
    by_number, _ = ask(made, document=7)
    assert by_number["source"] == "none"
    by_place, lines = ask(made, source=f"none:{by_number['row']}")
    assert by_place == by_number
    assert lines[0].startswith(f"document 7 (none:{by_number['row']}), ")
    assert any(line.startswith("epoch 0: windows ") for line in lines)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"step": 20}, "no such step, only 0 to 19"),
        ({"document": 45}, "not one of the 45 of training"),
        ({"document": -1}, "not one of the 45 of training"),
        ({"source": "none:0"}, "is no training document"),
        ({"source": "other.txt:0"}, "one of the 1 source files, such as none:0"),
        ({"source": "none"}, "FILE:ROW"),
        ({"steps": "7"}, "is no range"),
        ({}, "none of them given; give one of"),
        ({"step": 1, "document": 1}, "--step and --document given"),
    ],
)
def test_a_question_without_an_answer_is_one_sentence(made, question, message):
    with pytest.raises(ValueError, match=message):
        ask(made, **question)


def test_a_document_that_no_step_read_is_reported_as_such(made, tmp_path):
    run_to_end(tiny_config(made / "data", tmp_path / "run", steps=3))
    answers = [
        look_up(LookupOptions((made / "data",), tmp_path / "run", document=document))
        for document in range(45)
    ]
    unseen = [lines for value, lines in answers if not value["seen"]]
    assert 0 < len(unseen) < 45
    assert unseen[0][-1].endswith("has not read it")


def test_the_script_gives_one_json_value(made):
    script = ("data_prep/lookup.py", str(made / "data"), "--run", str(made / "run"))
    done = python(*script, "--step", "2", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["tokens"] == 128
    assert value["documents"][0].keys() >= {"document", "epoch", "source", "row", "text"}


def test_a_bare_json_before_the_data_set_is_no_file(made, tmp_path, monkeypatch, capsys):
    words = ["--json", str(made / "data"), "--run", str(made / "run"), "--step", "2"]
    monkeypatch.setattr("sys.argv", ["lookup.py", *words])
    main()
    value = json.loads(capsys.readouterr().out)
    path = tmp_path / "answer.json"
    monkeypatch.setattr("sys.argv", ["lookup.py", *words[1:], "--json", str(path)])
    main()
    assert json.loads(path.read_text()) == value


@pytest.mark.fault("D10", injected="one byte of a shard, then a lookup")
def test_a_damaged_shard_is_named_instead_of_what_it_now_holds(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "copy", symlinks=True)
    path = folder / "data" / "train_000001.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train_000001\.npy has sha256"):
        ask(folder, step=0)
