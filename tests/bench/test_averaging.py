"""What averages of checkpoints bring, on the checkpoints of recorded runs."""

import json
import shutil

import pytest

from tests.launching import python
from tests.runs import GOLDEN


def test_averages_are_compared_with_the_last_checkpoint_of_each_run(tmp_path):
    for name in ("a", "b"):
        shutil.copytree(GOLDEN.parent / "format_5" / "run", tmp_path / name)
    words = ["--last", "2", "--decay", "0.5", "--data", str(GOLDEN / "data_set")]
    done = python("bench/averaging.py", "a", "b", *words, "--results", "r.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 95 % intervals" in done.stdout
    found = json.loads((tmp_path / "r.json").read_text())
    losses = found["losses"]["a"]
    assert list(losses) == ["last checkpoint", "mean of 2", "ema 0.5 of 2"]
    change = losses["mean of 2"] - losses["last checkpoint"]
    assert found["differences"]["mean of 2"]["interval"]["mean"] == pytest.approx(change)


def test_a_run_with_too_few_checkpoints_is_refused_by_name(tmp_path):
    run = str(GOLDEN.parent / "format_5" / "run")
    words = [run, run, "--last", "2", "--until", "2", "--results", str(tmp_path / "r.json")]
    done = python("bench/averaging.py", *words)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "run has 1 checkpoints of these, fewer than last=2; give smaller" in done.stderr


def test_one_run_is_refused():
    done = python("bench/averaging.py", "runs/a")
    assert done.returncode == 2
    assert "one run says nothing of another seed; name two runs or more" in done.stderr
