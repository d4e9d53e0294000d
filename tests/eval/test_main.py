"""eval/main.py and eval/generate.py as a user starts them, on one rank and under torchrun."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from eval.compare import Arguments, compare
from eval.main import main
from eval.one_checkpoint import default_tasks
from eval.subject import (
    EvalOptions,
    Subject,
    load_subject,
    with_checkpoint_defaults,
)
from eval.tasks.registry import TASKS, check_tasks, run_tasks
from tests.data_sets import tiny_data_set
from tests.eval_subjects import ALONE, tiny_checkpoint, tiny_subject
from tests.launching import ENVIRONMENT, python, together

ALL_TASKS = ["--tasks", "hellaswag", "val_loss", "pydoc_choice"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    data = tiny_data_set(folder / "data", documents=200)
    return tiny_checkpoint(folder / "checkpoint", data, val_tokens=480)


@pytest.fixture
def quiet_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HF_HOME", str(tmp_path / "hub"))


@pytest.mark.slow
def test_one_and_two_ranks_give_the_same_bits_and_skip_hellaswag(checkpoint, tmp_path, quiet_hub):
    command = ["eval/main.py", "--checkpoint", str(checkpoint), *ALL_TASKS, "--micro-batch", "3"]
    out = [["--json", f"{tmp_path}/{n}.json", "--items-out", f"{tmp_path}/{n}"] for n in "12"]
    alone = python(*command, *out[0])
    two = together(2, *command, *out[1])
    for done in (alone, two):
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("hellaswag is left out: Rowan/hellaswag cannot be downloaded") == 1
        assert done.stdout.count("val/bits_per_byte") == 1
    found = json.loads((tmp_path / "1.json").read_text())
    assert found == json.loads((tmp_path / "2.json").read_text())
    assert found == run_tasks(
        load_subject(checkpoint, ALONE),
        with_checkpoint_defaults(checkpoint, EvalOptions(micro_batch=3)),
        ["val_loss", "pydoc_choice"],
    )
    for item in compare(Arguments(tmp_path / "1", tmp_path / "2")):
        assert (item.only_a, item.only_b, item.a) == (0, 0, found[item.tag])


@pytest.mark.parametrize("own", [None, "data that are elsewhere"])
def test_without_its_training_data_a_checkpoint_is_still_scored(own, caplog):
    caplog.set_level(logging.INFO)
    assert default_tasks((Path(own),) if own else ()) == ("hellaswag",)
    assert "val_loss is left out" in caplog.text


def test_if_its_data_exists_a_checkpoint_is_validated_by_default(checkpoint):
    assert default_tasks(with_checkpoint_defaults(checkpoint, EvalOptions()).data) == (
        "hellaswag",
        "val_loss",
    )


def test_a_damaged_checkpoint_ends_with_one_sentence(tmp_path):
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    done = python("eval/generate.py", "--checkpoint", str(folder))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "model.safetensors differs from its digest" in done.stderr


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("MANIFEST.json", "checkpoint is not a complete checkpoint (no MANIFEST.json); give"),
        ("model.safetensors", "model.safetensors is missing, so this checkpoint is damaged; use"),
        ("tokenizer/meta.json", "meta.json is missing, so this checkpoint is damaged; use"),
        (".", "there is no checkpoint at"),
    ],
)
def test_an_incomplete_checkpoint_ends_with_one_sentence(tmp_path, capsys, monkeypatch, lost, said):
    folder = tiny_checkpoint(tmp_path / "checkpoint")
    shutil.rmtree(folder) if lost == "." else (folder / lost).unlink()
    words = ["--checkpoint", str(folder), "--tasks", "pydoc_choice", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["eval/main.py", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of --checkpoint FOLDER and --watch RUN"),
        (["--checkpoint", "a", "--watch", "b"], "give one of --checkpoint FOLDER and --watch RUN"),
        (["--watch", "b", "--json", "c"], "--json cannot be used with --watch; read b/evals.jsonl"),
        (["--watch", "b", "--idle-minutes", "0"], "idle_minutes=0.0 ends the watch at once"),
    ],
)
def test_flags_that_exclude_each_other_are_an_error(capsys, monkeypatch, words, said):
    monkeypatch.setattr("sys.argv", ["eval/main.py", *words, "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_script_continues_prompts(checkpoint):
    done = python("eval/generate.py", "--checkpoint", str(checkpoint), "--prompt", "A list", "", 
                  "--max-tokens", "5", "--samples", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("A list") == 2
    assert done.stdout.count("---") == 3


def test_a_misspelt_task_is_an_error_that_lists_all_tasks(checkpoint):
    done = python("eval/main.py", "--checkpoint", str(checkpoint), "--tasks", "helaswag")
    assert done.returncode == 2
    assert "there is no task helaswag" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ValueError, match="no task loss"):
        check_tasks(["val_loss", "loss"])


def test_another_tokenizer_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="has 50257 ids, the model has vocab_size=300"):
        Subject(tiny_subject(vocab_size=300).model, tiny_subject().tokenizer, ALONE)


def test_a_data_set_that_changed_since_training_gives_a_warning(checkpoint, tmp_path, caplog):
    data = tiny_data_set(tmp_path / "data", documents=20)
    folder = tiny_checkpoint(tmp_path / "checkpoint", data)
    assert with_checkpoint_defaults(folder, EvalOptions()).data == (data.folder,)
    assert not caplog.records
    (folder / "state.json").write_text(json.dumps({"data": str(data.folder)}))
    with_checkpoint_defaults(folder, EvalOptions())
    assert "has changed since the training run" in caplog.text


@pytest.mark.parametrize("field", ["items", "val_tokens", "micro_batch", "tokens_per_batch"])
def test_an_option_below_one_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        EvalOptions(**{field: 0})


def test_help_lists_every_task(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["eval/main.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert ", ".join(TASKS) in " ".join(capsys.readouterr().out.replace("│", " ").split())
