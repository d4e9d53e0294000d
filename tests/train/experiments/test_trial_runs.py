"""Trials run in forks of a warm process, as they would by themselves."""

import signal
from contextlib import ExitStack

import pytest

from eval.training_config import EvalConfig
from parallel.warm_process import signal_all
from storage.atomic import read_json, write_json
from storage.digest import file_sha256
from tests.launching import python
from tests.runs import flags, losses, nano_config, run_to_end
from train.experiments.trial_check import check_trials
from train.experiments.trial_runs import TrialRunner
from train.experiments.trials import plan_trial


@pytest.fixture(scope="module")
def runners():
    """Those that were opened; the last one is open, unless a test has ended it."""
    with ExitStack() as opened:
        yield opened, []


@pytest.fixture
def runner(runners):
    """An open one. Each of its two slots takes seconds to begin, so tests share it."""
    opened, found = runners
    if not found or found[-1] in ENDED:
        found.append(opened.enter_context(TrialRunner(parallel=2)))
    return found[-1]


ENDED = []
EVERY = EvalConfig(every=8, val_tokens=64, tasks_every=0, tasks=())


def words_of(tmp_path, **changes):
    """The words of train/main.py for a run of milliseconds, without its seed and folder."""
    return flags(nano_config(tmp_path, **changes))[1:]


@pytest.mark.long
def test_trials_give_the_bits_of_runs_started_alone(runner, tmp_path):
    words = words_of(tmp_path)
    trials = [plan_trial(words, seed, tmp_path / f"s{seed}") for seed in (1, 2, 3)]
    ended = list(runner.run(trials))
    assert {e.trial.name: e.code for e in ended} == {"s1": 0, "s2": 0, "s3": 0}
    alone = python("train/main.py", *words, "--seed", "2", "--out", str(tmp_path / "alone"))
    assert alone.returncode == 0, alone.stderr
    assert losses(tmp_path / "alone") == losses(tmp_path / "s2") != losses(tmp_path / "s1")
    weights = "checkpoints/latest/model.safetensors"
    assert file_sha256(tmp_path / "alone" / weights) == file_sha256(tmp_path / "s2" / weights)
    assert "finished at step 8" in trials[0].log.read_text()


def test_a_finished_run_on_other_data_is_not_taken(tmp_path):
    trial = plan_trial(words_of(tmp_path, eval=EVERY), 1, tmp_path / "s1")
    run_to_end(trial.config)
    assert check_trials([trial], 1, tmp_path / "sweep") == {"s1": 8}
    record = read_json(trial.folder.config)
    write_json(trial.folder.config, record | {"data_fingerprint": "other"})
    with pytest.raises(ValueError, match="s1 holds a run on data other, and --data .* is "):
        check_trials([trial], 1, tmp_path / "sweep")


def test_what_is_finished_is_taken_and_not_run_again(runner, tmp_path):
    trial = plan_trial(words_of(tmp_path), 1, tmp_path / "s1")
    (first,) = runner.run([trial])
    (again,) = runner.run([trial])
    assert (first.taken, again.taken, again.seconds) == (False, True, 0.0)


def test_a_trial_that_is_stopped_saves_and_continues(runner, tmp_path):
    words = words_of(tmp_path, steps=3000)
    trial = plan_trial(words, 1, tmp_path / "s1")

    def look(running):
        return {trial.name: "seen enough"} if trial.folder.metrics.exists() else {}

    (ended,) = runner.run([trial], look)
    assert ended.stopped == "seen enough"
    assert trial.folder.read_status()["state"] == "preempted"
    assert 0 < trial.folder.read_status()["step"] < 3000


def test_a_run_that_fails_gives_its_exit_code_and_its_words(runner, tmp_path):
    trial = plan_trial(words_of(tmp_path), 1, tmp_path / "s1")
    (tmp_path / "data/manifest.json").unlink()
    (ended,) = runner.run([trial])
    assert ended.code == 2
    assert "manifest" in trial.log.read_text()


@pytest.mark.long
def test_runs_in_progress_are_stopped_when_the_runner_ends(runner, tmp_path):
    trial = plan_trial(words_of(tmp_path, steps=100_000), 1, tmp_path / "s1")

    def interrupt(running):
        if trial.folder.metrics.exists():
            raise KeyboardInterrupt
        return {}

    ENDED.append(runner)
    with pytest.raises(KeyboardInterrupt), runner:
        list(runner.run([trial], interrupt))
    assert trial.folder.read_status()["state"] == "preempted"


def test_a_signal_to_nobody_is_no_error():
    signal_all([2**22 + 1], signal.SIGTERM)
