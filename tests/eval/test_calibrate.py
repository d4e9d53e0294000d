"""The verdicts on the published scores, and the cases in which there is none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.calibrate import (
    AGREES,
    INCOMPARABLE,
    ITEMS,
    LABELS,
    MARKED,
    MISSED,
    PUBLISHED,
    Arguments,
    calibrate,
    make_verdicts,
    reasons_not_comparable,
)
from eval.result import ItemTable, TaskResult
from eval.subject import DataUnavailable
from eval.tasks.hellaswag import both_items
from model.config import GPTConfig
from model.hf_format.convert import export_model
from tests.eval_subjects import ALONE, tiny_checkpoint, tiny_subject
from tests.launching import ENVIRONMENT, python

ROW = {
    "activity_label": "Baking", "ctx_a": "The baker opens the oven.", "ctx_b": "she",
    "ctx": "The baker opens the oven. she", "source_id": "activitynet~v_1", "label": "0",
    "endings": ["takes the bread out.", "sings to it.", "paints it.", "sells the oven."],
}  # fmt: skip
MARKED_ROW = {**ROW, "ctx": "[header] How to bake [title] Heat.", "source_id": "wikihow~1"}


@pytest.fixture
def tiny_import(monkeypatch):
    """A tiny model instead of the one that would be downloaded."""
    monkeypatch.setattr("eval.calibrate._load_published", lambda *_: tiny_subject())


@pytest.fixture
def items_file(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({**ROW, "label": i % 4}) + "\n" for i in range(8)))
    return path


def split_as_published():
    plain, marked = both_items("x", ROW), both_items("x", MARKED_ROW)
    labels = np.repeat(np.arange(4), LABELS)
    pairs = [marked if i < MARKED else plain for i in range(ITEMS)]
    return tuple((replace(a, label=int(n)), b) for (a, b), n in zip(pairs, labels, strict=True))


def result_with(right: dict[str, int]) -> TaskResult:
    """A result of 10,042 items with these numbers of right answers."""
    tables = {}
    for task in {tag.split("/")[0] for tag in right}:
        chosen = {
            name: (np.arange(ITEMS) >= right[f"{task}/{name}"]).astype(int)
            for name in ("acc", "acc_norm")
        }
        nothing = np.zeros(ITEMS)
        tables[task] = ItemTable(nothing, nothing, nothing, nothing, chosen)
    return TaskResult({}, tables)


def test_the_counts_round_to_the_published_scores_and_no_others_do():
    figures = [round(count / ITEMS, 4) for count in PUBLISHED.values()]
    assert figures == [0.2859, 0.2955, 0.2892, 0.3114]
    for count in PUBLISHED.values():
        assert round((count + 1) / ITEMS, 4) != round(count / ITEMS, 4)
    assert sum(LABELS) == ITEMS


@pytest.mark.parametrize(("off", "allowed", "verdict"), [
    (10, 10, "agrees"), (-10, 10, "agrees"), (11, 10, "MISSED"), (-31, 30, "MISSED"),
])  # fmt: skip
def test_a_number_agrees_only_within_the_tolerance(off, allowed, verdict):
    result = result_with({**PUBLISHED, "hellaswag/acc_norm": 2967 + off})
    found = {one.tag: one for one in make_verdicts(result, allowed, [])}
    assert found["hellaswag/acc_norm"].verdict == verdict
    assert {one.verdict for tag, one in found.items() if tag != "hellaswag/acc_norm"} == {"agrees"}


def test_with_a_reason_against_it_no_number_gets_a_verdict():
    verdicts = make_verdicts(result_with(PUBLISHED), 10, ["it is another model"])
    assert [one.verdict for one in verdicts] == ["not comparable"] * 4


def test_a_file_with_the_content_of_the_published_split_can_be_compared(items_file):
    assert reasons_not_comparable(GPTConfig(), split_as_published(), items_file) == []


@pytest.mark.parametrize(("change", "reason"), [
    (lambda items: items[:100], "100 items are not the 10,042"),
    (lambda items: [(replace(p, label=0), h) for p, h in items], "right endings are [10042, 0"),
    (lambda items: [(replace(p, context="How to"), h) for p, h in items], "0 items of"),
    (lambda items: [(replace(p, original=False), h) for p, h in items], "its text was changed"),
])  # fmt: skip
def test_other_items_are_not_the_published_split(items_file, change, reason):
    items = tuple(change(split_as_published()))
    [found] = reasons_not_comparable(GPTConfig(), items, items_file)
    assert reason in found


def test_another_model_and_a_few_items_get_no_verdict(items_file, tmp_path, caplog):
    caplog.set_level("INFO")
    export_model(tiny_checkpoint(tmp_path / "ours"), tmp_path / "published")
    asked = Arguments(tmp_path / "published", items_file, device="cpu", json=tmp_path / "out.json")
    assert calibrate(asked, ALONE) == INCOMPARABLE
    assert "another shape than GPT-2 124M" in caplog.text
    assert "8 items are not the 10,042" in caplog.text
    assert caplog.text.count("not comparable\n") == 4
    assert "calibrated: all four" not in caplog.text
    written = json.loads((tmp_path / "out.json").read_text())
    assert {v["verdict"] for v in written["verdicts"]} == {"not comparable"}


def test_a_model_that_misses_the_scores_has_its_own_exit_code(
    tiny_import, items_file, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr("eval.calibrate.reasons_not_comparable", lambda *_: [])
    assert calibrate(Arguments(Path("tiny"), items_file, device="cpu"), ALONE) == MISSED != AGREES
    assert "is wrong: see ['hellaswag/acc'," in caplog.text
    assert "calibrated: all four" not in caplog.text


def test_stripped_text_is_named_in_the_table(tiny_import, tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "stripped.jsonl"
    path.write_text(json.dumps({**ROW, "text_exact": False}) + "\n")
    assert calibrate(Arguments(Path("tiny"), path, device="cpu"), ALONE) == INCOMPARABLE
    assert "hellaswag_unmarked/acc_norm" in caplog.text
    assert "hellaswag/acc" not in caplog.text


def test_without_items_the_error_says_that_nothing_was_calibrated(tiny_import, monkeypatch):
    def absent(*_):
        raise DataUnavailable("Rowan/hellaswag cannot be downloaded from the Hub")

    monkeypatch.setattr("eval.calibrate.read_items", absent)
    with pytest.raises(ValueError, match="not calibrated, the items cannot be loaded: Rowan"):
        calibrate(Arguments(Path("tiny"), device="cpu"), ALONE)


def test_without_weights_the_error_says_that_nothing_was_calibrated(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(tmp_path / "hub"))
    done = python("eval/calibrate.py", "--device", "cpu")
    assert done.returncode == INCOMPARABLE
    assert done.stderr.startswith("error: not calibrated, the weights cannot be loaded: openai")
    assert done.stderr.count("\n") == 1
    assert "calibrated:" not in done.stdout
