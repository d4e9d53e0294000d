"""Where a save and an evaluation are due, the save is first; the results are added to it."""

from dataclasses import replace
from pathlib import Path

import pytest

import train.evaluation as evaluation
import train.loop as loop
from eval.training_config import EvalConfig
from storage.atomic import read_json
from storage.checkpoint_folder import RESUME_FILES, replace_results, step_of, verify_checkpoint
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.runs import built, deterministic, final_bytes, lines, nano_config, run_to_end
from tests.storage.checkpoints import checkpoint
from train.checkpoints.checkpoint import validation_loss_of
from train.loop import train

EVALS = EvalConfig(every=4, val_tokens=64, tasks_every=0, tasks=())


class Killed(BaseException):
    """Ends a run as a kill does: nothing after it is done."""


@pytest.fixture
def config(tmp_path):
    """Eight steps; validation and a save every fourth."""
    return nano_config(tmp_path, eval=EVALS, save=SaveConfig(4, 0, keep=99), rehearsal=False)


def killed_in_evaluation(config, monkeypatch, step):
    """Train, and be killed in the evaluation of a step; returns the steps of the checkpoints."""
    run = built(config)
    take = run.loader.next_step
    run.loader.next_step = lambda: (run.saver.wait(), take())[1]

    def killing(run):
        if run.step == step:
            run.saver.wait()
            raise Killed
        evaluation.evaluate(run)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", killing)
        with pytest.raises(Killed):
            train(run)
    run.close()
    return [step_of(path) for path in RunFolder(config.out).all_checkpoints()]


@pytest.mark.fault("S1", injected="SIGKILL in an evaluation", lost="0", identical=True)
@pytest.mark.parametrize(("step", "saved"), [(4, [4]), (8, [8, 4])])
def test_a_kill_in_an_evaluation_costs_no_step(config, monkeypatch, step, saved):
    straight = replace(config, out=config.out.with_name("straight"))
    run_to_end(straight)
    assert killed_in_evaluation(config, monkeypatch, step) == saved
    run_to_end(config)
    assert final_bytes(config.out) == final_bytes(straight.out)
    assert list(map(deterministic, lines(config.out))) == list(
        map(deterministic, lines(straight.out))
    )
    results = [read_json(c.out / "checkpoints/latest/results.json") for c in (config, straight)]
    assert results[0] == results[1]


@pytest.mark.fault("S1", injected="SIGKILL in the last evaluation, no saves by step", lost="0")
def test_the_last_state_is_saved_before_the_last_evaluation(config, monkeypatch):
    config = replace(config, save=SaveConfig(0, 0, keep_best=0))
    assert killed_in_evaluation(config, monkeypatch, 8) == [8]


def test_a_save_by_the_clock_comes_before_an_evaluation_too(config, monkeypatch):
    config = replace(config, save=SaveConfig(0, every_minutes=1e-9, keep=99))
    assert 4 in killed_in_evaluation(config, monkeypatch, 4)


def test_every_checkpoint_of_an_evaluated_step_has_its_results(config):
    run_to_end(config)
    measured = {x["step"]: x["val/loss"] for x in lines(config.out) if "val/loss" in x}
    folder = RunFolder(config.out)
    for step in (4, 8):
        verify_checkpoint(folder.checkpoint(step), RESUME_FILES)
        assert validation_loss_of(folder.checkpoint(step)) == measured[step]


def test_pruning_knows_the_loss_that_was_measured_after_the_save(config):
    config = replace(config, steps=16, save=SaveConfig(4, 0, keep=1, keep_best=1))
    run_to_end(config)
    measured = {
        x["step"]: x["val/loss"] for x in lines(config.out) if x.get("step") in (4, 8, 12, 16)
    }
    best = min(measured, key=lambda step: measured[step])
    kept = [step_of(path) for path in RunFolder(config.out).all_checkpoints()]
    assert kept == sorted({best, 16}, reverse=True)


@pytest.mark.fault("S1", injected="a kill before each rename as results are added", lost="0")
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_checkpoint_to_which_results_are_added_verifies_at_any_moment(
    tmp_path, monkeypatch, renames
):
    path = checkpoint(RunFolder(tmp_path), 4)
    replace_path, done = Path.replace, []

    def killing(self, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        return replace_path(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killing)
        with pytest.raises(Killed):
            replace_results(path, {"step": 4, "metrics": {"val/loss": 2.5}})
    verify_checkpoint(path, RESUME_FILES)
    assert validation_loss_of(path) == (2.5 if renames == 2 else None)
    replace_results(path, {"step": 4, "metrics": {"val/loss": 2.5}})
    verify_checkpoint(path, RESUME_FILES)
    assert validation_loss_of(path) == 2.5
    assert "before" not in (path / "MANIFEST.json").read_text()


def test_results_that_differ_from_both_digests_are_damage(tmp_path):
    path = checkpoint(RunFolder(tmp_path), 4)
    replace_results(path, {"step": 4, "metrics": {}})
    (path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"results\.json differs"):
        verify_checkpoint(path)
