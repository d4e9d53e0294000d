"""Sweeps: real ones of tiny runs, what is refused before the first run, and kills."""

import json
import os
import signal
import time

import pytest

from storage.digest import file_sha256
from tests.launching import python, running
from tests.runs import flags, nano_config

SWEEP = "tests/programs/forking_sweep.py"
TIMES = ("train_seconds", "tokens_per_second")


def sweep_words(folder, steps=30, more=()):
    """The words of a sweep in `folder`/sweep, whose runs take milliseconds."""
    words = flags(nano_config(folder, steps=steps), "--eval.every", "10", *more)[1:]
    place = words.index("--optimizer.lr")
    del words[place : place + 2]
    words[words.index("--out") + 1] = str(folder / "sweep")
    return words


def record(folder):
    """sweep.json, without times and speeds."""
    found = json.loads((folder / "sweep" / "sweep.json").read_text())
    for run in found["runs"]:
        for key in TIMES:
            run.pop(key, None)
    return found


RATES = ("--optimizer", "sgd", "--set", "optimizer.lr=1,2,10,100,1000", "--seeds", "1")


def blocked(folder):
    """A file where one of the runs would have a folder."""
    return folder / "sweep" / "optimizer.lr=2,seed=1" / "checkpoints"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """SGD at the rates of a well-known exercise, with a run that fails; and what was printed."""
    folder = tmp_path_factory.mktemp("swept")
    blocked(folder).parent.mkdir(parents=True)
    blocked(folder).write_text("no folder")
    done = python(SWEEP, *sweep_words(folder, more=RATES))
    assert done.returncode == 1, done.stdout + done.stderr
    return folder, done.stdout


def test_a_sweep_trains_each_value_and_stops_what_diverges(swept):
    folder, said = swept
    runs = {run["settings"]["optimizer.lr"]: run for run in record(folder)["runs"]}
    assert {rate: run["state"] for rate, run in runs.items()} == {
        1.0: "finished",
        2.0: "failed",
        10.0: "diverged",
        100.0: "diverged",
        1000.0: "diverged",
    }
    assert runs[1.0]["val_loss"] < 4.5
    assert "best: optimizer.lr=1, final validation loss" in said
    assert "1 diverged at step 9" in said
    assert (folder / "sweep" / "sweep.png").exists()


def test_a_run_that_fails_is_reported_with_the_end_of_its_log(swept):
    _, said = swept
    assert "optimizer.lr=2,seed=1 failed (exit code 2); the end of " in said
    assert "checkpoints" in said.partition("the end of ")[2]


def test_each_run_is_an_ordinary_run_folder(swept):
    folder, _ = swept
    run = folder / "sweep" / "optimizer.lr=1,seed=1"
    done = python("train/main.py", "--continue", str(run))
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout


def test_the_same_command_takes_what_has_ended_and_runs_again_what_failed(swept):
    folder, _ = swept
    before = record(folder)
    blocked(folder).unlink()
    done = python(SWEEP, *sweep_words(folder, more=RATES))
    assert (done.returncode, done.stdout.count("(taken)")) == (0, 4), done.stderr
    after = record(folder)
    assert [run for run in after["runs"] if run["settings"]["optimizer.lr"] != 2.0] == [
        run for run in before["runs"] if run["settings"]["optimizer.lr"] != 2.0
    ]
    assert (before["state"], after["state"]) == ("unfinished", "finished")
    done = python("train/sweep.py", "--show", str(folder / "sweep"))
    assert "best: optimizer.lr=1, " in done.stdout


def test_a_shard_has_every_nth_run_and_reports_them_all(swept):
    folder, _ = swept
    done = python("train/sweep.py", *sweep_words(folder, more=(*RATES, "--shard", "2/2")))
    assert done.returncode == 0, done.stderr
    assert [line.split()[3] for line in done.stdout.splitlines() if "(taken)" in line] == [
        "optimizer.lr=2,seed=1",
        "optimizer.lr=100,seed=1",
    ]
    assert record(folder)["state"] == "finished"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--steps", "40"], r"holds a run with another configuration (steps: 30 -> 40)"),
        (["--data", "nowhere"], "there is no data set at nowhere"),
        (["--batch-tokens", "100"], "batch_tokens=100 is not a multiple of 2 x 16 x 1"),
        (["--optimizer.momentum", "1"], "optimizer.momentum=1.0 is out of range"),
        (["--continue", "runs/x"], "--continue runs/x has no meaning here"),
        (["--out", "tests/golden/format_1/data_set"], "is a data set; choose another folder for"),
        (["--out", "tests/golden/format_5/run"], "is a run; choose another folder for the sweep"),
        (["--seed", "5"], "--seed 5 is one seed; give --seeds 5,"),
        (["--eval.every", "0"], "eval.every=0 measures nothing to compare"),
        (["--shard", "3/2"], "shard=3/2 is no share; give I/N with I from 1 to N"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(swept, more, said):
    folder, _ = swept
    before = sorted(folder.rglob("*"))
    done = python("train/sweep.py", *sweep_words(folder, more=(*RATES, *more)))
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(folder.rglob("*")) == before


def metric_lines(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.long
def test_a_sweep_that_is_killed_at_any_moment_ends_as_an_undisturbed_one(tmp_path):
    grid = ("--set", "optimizer.lr=0.001,0.01,100", "--seeds", "2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert python(SWEEP, *sweep_words(whole, 80, grid)).returncode == 0
    command = [SWEEP, *sweep_words(killed, 80, grid)]
    for run, number, code in (
        ("optimizer.lr=0.001,seed=1", signal.SIGKILL, -signal.SIGKILL),
        ("optimizer.lr=0.01,seed=1", signal.SIGTERM, 75),
        ("optimizer.lr=0.001,seed=2", signal.SIGKILL, -signal.SIGKILL),
    ):
        with running(1, *command) as sweep:
            deadline = time.monotonic() + 120
            while metric_lines(killed / "sweep" / run) < 20:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(sweep.pids[0], number)
        assert sweep.codes == [code]
    assert python(*command).returncode == 0
    found, wanted = record(killed), record(whole)
    assert found["runs"] == wanted["runs"]
    assert found["best"] == wanted["best"]
    for run in wanted["runs"]:
        if run["state"] == "finished":
            weights = f"sweep/{run['name']}/checkpoints/latest/model.safetensors"
            assert file_sha256(killed / weights) == file_sha256(whole / weights)
