"""Bad items, weights, tokenizers or too little memory: a clear error, or it continues.

More such tests: tasks/test_hellaswag.py and tasks/test_tasks.py (schemas), scoring/ (endings,
memory), tasks/test_few_shot.py and test_calibrate.py.
"""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.tokenizer import Tokenizer
from eval.scoring.shared_context import SharedContext, score_contexts
from eval.subject import EvalOptions, load_subject
from eval.tasks.hellaswag import both_items, hellaswag
from eval.tasks.questions import arc_item, openbookqa_item, piqa_item
from eval.tasks.registry import measure, run_tasks
from storage.byte_pairs import ranks_file
from storage.checkpoint_folder import write_manifest
from tests.eval_subjects import ALONE, limit_memory, tiny_checkpoint, tiny_subject
from tests.launching import python

SUBJECT = tiny_subject()
CHOICES = {"text": ["ice", "steam"], "label": ["1", "2"]}
PIQA = {"goal": "Boil", "sol1": "heat it", "sol2": "cool it"}
ARC = {"question": "Boiling gives?", "question_stem": "Boiling gives", "choices": CHOICES}
SWAG = {"activity_label": "Baking", "ctx_a": "She bakes", "ctx_b": "", "ctx": "She bakes",
        "endings": ["bread.", "cake.", "songs of old.", "nothing."], "label": "1"}  # fmt: skip
MISSING_LM_EVAL = "lm-evaluation-harness is not installed; pip install"


def given(folder, task, *rows, **changes) -> EvalOptions:
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalOptions(task_file=(f"{task}={path}",), **changes)


@pytest.mark.parametrize(("read", "row", "key"), [
    (piqa_item, PIQA, "label"), (arc_item, ARC, "answerKey"), (openbookqa_item, ARC, "answerKey"),
    (lambda where, row: both_items(where, row)[1], SWAG, "label"),
])  # fmt: skip
def test_a_label_may_be_text_or_a_number_but_not_empty(read, row, key):
    assert read("here", {**row, key: "1"}) == read("here", {**row, key: 1})
    with pytest.raises(ValueError, match="here has an empty label, as a test split does"):
        read("here", {**row, key: ""})


def test_a_passage_longer_than_the_context_is_scored_by_its_last_tokens_and_counted(tmp_path):
    text = "word " * 80 + "end"
    options = given(tmp_path, "lambada", {"text": text}, {"text": "a b"})
    result = measure(SUBJECT, options, ["lambada"])
    assert result.tags["lambada/truncated_rows"] == 1
    encode, T = SUBJECT.tokenizer.encode, SUBJECT.model.config.context_length
    kept = SharedContext(encode(text.removesuffix(" end"))[-T:], (encode(" end"),))
    [[nats, _]] = score_contexts(SUBJECT, [kept], EvalOptions())
    np.testing.assert_allclose(result.items["lambada"].losses[0, 0], nats, rtol=1e-5)


LONG = "word " * 60


@pytest.mark.parametrize(
    ("task", "good", "bad", "sentence"),
    [
        ("hellaswag", SWAG, {**SWAG, "endings": ["a", "b", LONG, "d"]}, "ending 2 has 61 tok"),
        ("piqa", {**PIQA, "label": 1}, {**PIQA, "label": 1, "sol2": LONG}, "ending 1 has 61 tok"),
        ("lambada", {"text": "He went"}, {"text": "a " + "x9" * 60}, "ending 0 has 120 tokens"),
    ],
)
def test_an_item_that_does_not_fit_is_left_out_counted_and_named(
    tmp_path, caplog, task, good, bad, sentence
):
    found = measure(SUBJECT, given(tmp_path, task, good, bad, good), [task])
    (tmp_path / "alone").mkdir()
    alone = measure(SUBJECT, given(tmp_path / "alone", task, good, good), [task])
    assert found.tags == alone.tags | {f"{style}/unscorable_items": 1.0 for style in found.items}
    assert not found.failures
    assert len(found.items[task].ids) == 2
    assert f"{task}: 1 of its items left out, such as item 1: {sentence}" in caplog.text


def test_a_task_of_which_no_item_fits_fails_alone(tmp_path, caplog):
    options = given(tmp_path, "piqa", {**PIQA, "label": 1, "sol2": LONG})
    found = measure(SUBJECT, replace(options, items=2), ["piqa", "pydoc_choice"])
    assert "pydoc_choice/acc" in found.tags
    assert found.failures.keys() == {"piqa"}
    assert "no item can be scored; item 0: ending 1 has 61 tokens" in found.failures["piqa"]
    with pytest.raises(ValueError, match="piqa: no item can be scored"):
        run_tasks(SUBJECT, options, ["piqa"])


def test_the_numbers_of_the_other_tasks_are_written_before_a_failed_one_ends_the_script(tmp_path):
    options = given(tmp_path, "piqa", {**PIQA, "label": 1, "sol2": LONG})
    [file], out = options.task_file, tmp_path / "out.json"
    done = python(
        *("eval/main.py", "--checkpoint", str(tiny_checkpoint(tmp_path / "step_000010"))),
        *("--tasks", "piqa", "pydoc_choice", "--task-file", file, "--items", "2"),
        *("--json", str(out), "--device", "cpu"),
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: piqa: no item can be scored; item 0: ending 1")
    assert "pydoc_choice/acc " in done.stdout
    assert "pydoc_choice/acc" in json.loads(out.read_text())


@pytest.mark.parametrize(
    ("task", "row"),
    [("lambada", {"text": "He went home"}), ("wikitext", {"page": " = A = \n b c \n"}),
     ("piqa", {**PIQA, "label": 1}), ("hellaswag", SWAG)],
)  # fmt: skip
def test_logits_that_are_not_finite_are_an_error(tmp_path, task, row):
    subject = tiny_subject()
    torch.nn.init.constant_(subject.model.ln_f.weight, math.nan)
    found = measure(subject, given(tmp_path, task, row), [task])
    assert "nan" in found.failures[task]
    assert "the weights are damaged or have diverged" in found.failures[task]
    assert not found.tags


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("bad") / "step_000010")


def copy_without(checkpoint, folder, *names):
    shutil.copytree(checkpoint, folder / "step_000010")
    for name in names:
        path = folder / "step_000010" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder / "step_000010"


@pytest.mark.parametrize(
    "gone",
    [["MANIFEST.json"], ["model.safetensors"], ["tokenizer"], ["MANIFEST.json", "model.json"]],
)
def test_an_incomplete_checkpoint_is_refused(checkpoint, tmp_path, gone):
    with pytest.raises(
        ValueError, match="step_000010.*not a complete checkpoint|step_000010.*missing"
    ):
        load_subject(copy_without(checkpoint, tmp_path, *gone), ALONE)


@pytest.mark.parametrize("gone", ["model.safetensors", "model.json", "tokenizer"])
def test_a_checkpoint_pruned_while_it_is_read_is_an_error(checkpoint, tmp_path, monkeypatch, gone):
    monkeypatch.setattr("model.checkpoint_source.verify_checkpoint", lambda folder: None)
    with pytest.raises(ValueError, match="step_000010"):
        load_subject(copy_without(checkpoint, tmp_path, gone), ALONE)


def test_a_checkpoint_with_another_models_tokenizer_is_refused(checkpoint, tmp_path):
    folder = copy_without(checkpoint, tmp_path, "tokenizer")
    letters = Tokenizer("letters", r"\S+|\s+", ranks_file(bytes([i]) for i in range(256)))
    letters.save(folder / "tokenizer")
    write_manifest(folder)
    with pytest.raises(ValueError, match="letters has 257 ids, the model has vocab_size=50257"):
        load_subject(folder, ALONE)


def test_out_of_memory_halves_the_batches_and_the_task_continues(tmp_path, monkeypatch, caplog):
    rows = [{**SWAG, "ctx_a": f"She bakes {i}", "ctx": f"She bakes {i}"} for i in range(12)]
    options = given(tmp_path, "hellaswag", *rows)
    whole = hellaswag(SUBJECT, options)
    limit_memory(monkeypatch, SUBJECT.model, 100)
    halved = hellaswag(SUBJECT, options)
    assert "out of memory: batches of at most" in caplog.text
    assert halved.tags == whole.tags
    for name, table in whole.items.items():
        np.testing.assert_allclose(halved.items[name].losses, table.losses, rtol=1e-5)


def test_without_the_harness_the_script_says_how_to_install_it(checkpoint, monkeypatch, capsys):
    import eval.lm_eval_model as script

    monkeypatch.setattr("eval.harness.model.register_model", None)
    monkeypatch.setattr("sys.argv", ["x", "--checkpoint", str(checkpoint), "--tasks", "piqa"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert MISSING_LM_EVAL in capsys.readouterr().err
