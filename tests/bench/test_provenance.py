"""Tests of bench/provenance.py: the command and the commit in a results file."""

import shlex
import subprocess

from bench.provenance import commit_of_sources, provenance


def test_the_command_is_as_typed_except_for_paths_outside_the_project(monkeypatch):
    typed = ["--side", "a; ../b", "--data=/home/alice/set", "hellaswag=/home/alice/h.jsonl"]
    typed += ["../../alice/x", "--out", "bench/results/x.json", "/home/alice/own"]
    monkeypatch.setattr("sys.argv", ["bench/order.py", *typed])
    words = shlex.split(provenance(())["command"])
    assert words[0] == "python"
    assert words[2:] == [
        *("--side", "a; ../b", "--data=set", "hellaswag=h.jsonl"),
        *("x", "--out", "bench/results/x.json", "own"),
    ]


def test_changed_code_is_marked_as_dirty_and_a_changed_result_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.provenance.ROOT", tmp_path)
    assert commit_of_sources() == "unknown"
    for name in ("bench/results/x.json", "bench/LOG.md", "train/step.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "all")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = commit_of_sources()
    (tmp_path / "bench/results/x.json").write_text("measured")
    (tmp_path / "bench/LOG.md").write_text("noted")
    assert commit_of_sources() == clean
    (tmp_path / "train/step.py").write_text("changed")
    assert commit_of_sources() == f"{clean}-dirty"
