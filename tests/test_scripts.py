"""Every script explains itself, and the chain from text to a sampled model holds together."""

import json
import re
from pathlib import Path

import pytest

from tests.golden.make import asked_for_help, help_file, help_of, scripts
from tests.launching import ENVIRONMENT, REPO, fresh_python, python, together
from tests.script_flags import SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_how_it_is_used(script):
    done = asked_for_help(script)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"usage: \S*{script} ", done.stdout), done.stdout[:200]


@pytest.mark.parametrize("script", scripts())
def test_the_help_of_a_script_is_the_recorded_one(script):
    assert help_of(script) == help_file(script).read_text()


def test_a_boolean_is_a_flag_in_every_script_and_both_old_spellings_mean_it():
    meant, commands = [], []
    for script in SCRIPTS:
        text = help_of(script)
        assert "{True,False}" not in text, script
        for flag, negated in re.findall(r"│ (--[\w.-]+), (--(?:[\w-]+\.)*no-[\w-]+) ", text):
            for word, value in ((flag, "True"), (negated, "False")):
                commands += [[script, flag, value], [script, f"{flag}={value}"]]
                meant += [[word], [word]]
    assert len({script for script, *_ in commands}) >= 10
    done = python("tests/programs/words_for_tyro.py", typed=json.dumps(commands))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == meant


def test_the_proof_of_resuming_takes_old_spellings_of_its_own_options_and_of_the_run():
    words = ["--rehearsal", "False", "--guard.box-weights=False", "--deterministic", "True"]
    done = python("train/prove_resume.py", "demo", *words, "--steps", "30", "--kills", "40")
    assert (done.returncode, done.stdout) == (2, "")
    assert "steps=30 is too few for kills=40" in done.stderr


def test_no_help_is_recorded_of_a_script_that_is_gone():
    recorded = {path.name for path in help_file("").parent.iterdir()}
    assert recorded == {help_file(script).name for script in scripts()}


def test_a_benchmark_starts_from_any_folder_as_the_documents_write_it(tmp_path, monkeypatch):
    monkeypatch.delitem(ENVIRONMENT, "PYTHONPATH")
    done = fresh_python(str(REPO / "bench" / "order.py"), "--help")
    assert (done.returncode, "order.py [-h]" in done.stdout) == (0, True), done.stderr


@pytest.mark.slow
def test_text_becomes_a_trained_evaluated_and_sampled_model(tmp_path):
    data, run = tmp_path / "docs", tmp_path / "run"
    words = ["--embedded", "--max-documents", "60", "--workers", "1", "--out", str(data)]
    done = python("data_prep/text.py", *words)
    assert done.returncode == 0, done.stderr
    flags = ["demo", "--data", str(data), "--out", str(run), "--steps", "10", "--device", "cpu"]
    flags += ["--schedule.warmup-steps", "2", "--eval.val-tokens", "512", "--eval.items", "4"]
    flags += ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "32"]
    flags += ["--context-length", "64", "--batch-tokens", "256", "--sample.max-tokens", "8"]
    done = together(2, "train/main.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "finished at step 10" in done.stdout
    assert "unigram entropy" in done.stdout
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    again = together(2, "train/main.py", *flags)
    assert (again.returncode, "is finished (10 steps)" in again.stdout) == (0, True)
    check_evaluation(run, tmp_path)
    words = [
        "--checkpoint",
        str(run / "checkpoints/latest"),
        "--prompt",
        "Return",
        "--device",
        "cpu",
    ]
    done = python("eval/generate.py", *words, "--max-tokens", "5")
    assert (done.returncode, "Return" in done.stdout) == (0, True), done.stderr


def check_evaluation(run: Path, folder: Path) -> None:
    """Alone, the checkpoint gives the numbers that training logged."""
    words = ["--checkpoint", str(run / "checkpoints/latest"), "--tasks", "val_loss", "pydoc_choice"]
    words += ["--items", "4", "--json", str(folder / "eval.json"), "--device", "cpu"]
    done = python("eval/main.py", *words, "--micro-batch", "2")
    assert done.returncode == 0, done.stderr
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    alone = json.loads((folder / "eval.json").read_text())
    assert alone["val/loss"] == last["val/loss"]
    assert alone.items() <= last.items()
