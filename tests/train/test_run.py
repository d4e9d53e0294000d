"""What a Run owns, and what it does between two steps."""

import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from storage.json_lines import read_lines
from tests.launching import REPO
from tests.runs import built, lines, nano_config, run_to_end
from train.loop import train
from train.recovery.ending import emergency_checkpoint
from train.run import Run

SCREEN = 60  # lines


@pytest.fixture
def run(tmp_path):
    ready = built(nano_config(tmp_path))
    yield ready
    ready.close()


def test_a_run_has_sixteen_fields_at_most():
    assert len(fields(Run)) <= 16


def test_the_loop_fits_one_screen():
    text = Path(REPO, "train", "loop.py").read_text()
    assert len(text.splitlines()) <= SCREEN


def test_step_and_plan_are_the_learners(run):
    run.learner.plan = replace(run.plan, micro_batch=1)
    assert run.plan.micro_batch == run.eval_options.micro_batch == run.position().micro_batch == 1
    assert run.step == run.learner.updates == 0


def take_step(run):
    """One step as the loop takes it; its line stays unread."""
    batch = run.loader.next_step()
    values = run.learner.step(batch, lr=1e-3)
    run.advance(batch)
    run.progress.launched(run.step - 1, 1e-3, batch.first_window, run.tokens, values, {})


def test_the_cursor_follows_the_windows_of_each_step(run):
    take_step(run)
    take_step(run)
    windows = 2 * run.plan.windows
    assert (run.cursor.updates, run.cursor.next_window, run.cursor.windows) == (2, windows, windows)
    assert run.is_consistent


def test_an_update_whose_windows_were_not_counted_is_never_saved(run):
    run.learner.step(run.loader.next_step(), lr=1e-3)
    assert not run.is_consistent
    assert emergency_checkpoint(run, "an error between update and cursor") is None
    assert not list(run.folder.checkpoints.glob("step_*"))


def test_work_between_steps_belongs_to_no_step_and_reads_the_one_in_flight(run):
    take_step(run)
    with run.aside():
        assert [line["step"] for line in read_lines(run.folder.metrics)] == [0]
        time.sleep(0.5)
    take_step(run)
    run.write_line()
    assert run.progress.clock.seconds < 0.4


def test_asking_whether_a_stop_is_wanted_changes_nothing_and_a_heartbeat_checks_the_clock(run):
    run.stop.stop_at = 0.0
    assert not run.stop.wanted
    run.heartbeat()
    assert run.stop.wanted
    assert run.poll_stop()


def test_after_the_first_line_a_signal_saves_instead_of_ending_at_once(run):
    assert run.stop.nothing_to_save
    take_step(run)
    run.write_line()
    assert not run.stop.nothing_to_save


def test_a_report_that_fails_is_logged_and_the_run_has_finished(tmp_path, monkeypatch, caplog):
    from train.recovery import ending

    def fail(run):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(ending, "write_report", fail)
    run = built(nano_config(tmp_path, steps=3))
    assert ending.finish(run) == 0
    assert run.folder.read_status()["state"] == "finished"
    assert "the closing report failed (RuntimeError: no fonts)" in caplog.text


def test_the_loops_own_line_is_the_last_step_without_a_loss(tmp_path):
    run_to_end(nano_config(tmp_path, steps=3))
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    assert ["train/loss" in line for line in found] == [True, True, True, False]


def test_a_stop_agreed_before_the_first_step_trains_nothing(run):
    run.progress.stop_agreed = True
    before = run.model.wte.weight.detach().clone()
    assert train(run) == "preempted"
    assert torch.equal(run.model.wte.weight, before)
