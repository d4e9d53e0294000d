"""The verdict of a resume proof: what it accepts, and what it finds."""

import sys

import pytest

from tests.runs import stopped_at
from train import prove_resume
from train.prove_resume import ProofOptions, prove
from train.recovery.resume_proof.comparison import check_kills, compare_exactly, verdict
from train.recovery.resume_proof.kills import Job, Kill
from train.saving import save


def test_the_proof_fails_when_a_step_was_lost_or_the_run_began_anew():
    kills = [Kill("rank", 20, "rank 1", resumed=18), Kill("all", 30, "every process", resumed=0)]
    found = check_kills(kills, 2, survivors=True)
    assert [finding.holds for finding in found] == [True, False, False]
    text = verdict("demo", found, kills, ["a note"])
    assert "### Resume proof: demo: FAILED" in text
    assert "| 1 | rank 1 | 20 | 18 | 2 | 0.0 |" in text


def test_the_proof_fails_when_one_value_differs(tmp_path):
    one = stopped_at(tmp_path / "a", 5)
    two = stopped_at(tmp_path / "b", 5)
    for run in (one, two):
        save(run)
        run.close()
    folders = one.folder.path, two.folder.path
    assert all(finding.holds for finding in compare_exactly(*folders))
    text = two.folder.metrics.read_text()
    two.folder.metrics.write_text(text.replace('"train/lr": 0.01', '"train/lr": 0.02'))
    broken = [f.what for f in compare_exactly(*folders) if not f.holds]
    assert broken == ["every metric line"]


def test_the_proof_says_what_it_is_and_leaves_the_trainings_flags_to_it(capsys, monkeypatch):
    for words in (["--help"], ["demo", "--seed", "x", "--kills", "1"]):
        monkeypatch.setattr(sys, "argv", ["train/prove_resume.py", *words])
        with pytest.raises(SystemExit):
            prove_resume.main()
    said = capsys.readouterr()
    assert said.out.startswith("usage: train/prove_resume.py")
    assert "Prove on this machine" in said.out
    assert "--kill-seed" in said.out
    assert said.err == "error: --seed x is not a whole number; give one\n"


def test_after_a_ctrl_c_the_kills_so_far_are_judged(tmp_path, monkeypatch, capsys):
    for name in ("straight", "killed"):
        stopped_at(tmp_path / "proof" / name, 5).close()
        (tmp_path / "proof" / name / "run" / "metrics.jsonl").rename(
            tmp_path / "proof" / name / "metrics.jsonl"
        )
    killed = tmp_path / "proof" / "killed" / "metrics.jsonl"
    killed.write_text("".join(killed.read_text().splitlines(keepends=True)[:3]))

    def interrupted(job, kinds, steps, dice, tell):
        tell(Kill("rank", 2, "rank 1", resumed=2, seconds=4.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(prove_resume, "run_with_kills", interrupted)
    monkeypatch.setattr(Job, "run_to_end", lambda self: None)
    text, holds = prove(ProofOptions(kills=9, proof_out=tmp_path / "proof"), ["demo"], 40)
    assert (holds, "1 of 9 kills: INTERRUPTED, all held so far" in text) == (False, True)
    assert "| every metric line | yes | 3 lines |" in text
    assert (
        "kill 1 of 9: rank 1 at step 2 of 40, resumed at 2 after 4.0 s" in capsys.readouterr().err
    )
    assert (tmp_path / "proof" / "verdict.md").read_text() == text + "\n"
