"""The best validation, and a run that ends where it has not been improved on."""

import shutil
from dataclasses import replace

import pytest

from eval.training_config import EvalConfig
from storage.atomic import read_json
from storage.ownership.latest import follow_latest
from storage.retention import SaveConfig
from tests.runs import (
    KEEP_ALL,
    alone,
    built,
    deterministic,
    final_bytes,
    forget_after,
    lines,
    nano_config,
    run_to_end,
)
from train.config import Config
from train.evaluation import evaluate
from train.guards.best_validation import BestValidation, best_validation, results_after
from train.preflight.inputs import check_inputs
from train.recovery.ending import finish
from train.reporting.best_checkpoint import best_rows
from train.reporting.closing_table import finished_notice
from train.reporting.last_screen import next_commands

LOSSES = {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5, 8: 3.0, 10: 3.2, 12: 2.5, 14: 2.4, 16: 2.3}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of 16 steps whose validation, at every second one, gives `LOSSES`."""

    def validation(subject, *args, **options):
        return {"val/loss": LOSSES[here[-1]], "val/bits_per_byte": 1.0}

    def noted(run):
        here.append(run.step)
        evaluate(run)

    here = []
    monkeypatch.setattr("train.evaluation.mixture_loss", validation)
    monkeypatch.setattr("train.loop.evaluate", noted)
    config = nano_config(tmp_path, steps=16, save=SaveConfig(every_minutes=0, keep=1))
    return replace(config, eval=replace(config.eval, every=2), stop_when_worse=3, rehearsal=False)


def ended(config):
    """The last step of a run that is trained to its end, as `train/main.py` does."""
    run = built(config)
    assert finish(run) == 0
    return run.step


def test_validations_that_are_no_better_are_counted_from_the_best():
    results = {}
    found = []
    for step, loss in LOSSES.items():
        results = results_after(results, step, {"val/loss": loss})
        found.append(results["best"]["worse"])
    assert found == [0, 0, 0, 1, 2, 3, 0, 0, 0]
    assert best_validation(results) == BestValidation(16, 2.3)
    later = results_after(results, 17, {"hellaswag/acc": 0.3})  # no validation
    assert best_validation(later) == BestValidation(16, 2.3)


@pytest.mark.parametrize("best", [3, {"step": -1, "loss": 1.0, "worse": 0}, {"step": 1}, None])
def test_what_no_version_wrote_is_the_last_evaluation(best):
    results = {"step": 4, "metrics": {"val/loss": 2.0}, "best": best}
    assert best_validation(results) == BestValidation(4, 2.0)
    assert best_validation({"step": 4, "metrics": {}, "best": best}) is None
    assert best_validation({}) is None


def test_a_run_finishes_where_it_has_stopped_improving_and_names_its_best_checkpoint(config):
    run = built(config)
    assert finish(run) == 0
    folder = run.folder
    assert (run.step, folder.is_finished()) == (10, True)
    assert "the last 3 validations were no better" in (folder.read_status() or {})["reason"]
    assert [path.name for path in folder.all_checkpoints()] == ["step_000010", "step_000004"]
    rows = dict(best_rows(run))
    best = folder.checkpoints / "best"
    assert rows["best checkpoint"] == f"{folder.checkpoint(4)}, validation loss 3.0000"
    commands = next_commands(run, lines(config.out))
    assert f"--checkpoint {best}\n" in commands
    assert f"--continue {config.out} --stop-when-worse 6 --allow stop_when_worse" in commands
    assert best.resolve() == folder.checkpoint(4).resolve()
    best.unlink()
    best.write_text("step_000004\n")  # where a file system has no links
    assert follow_latest(best) == folder.checkpoint(4)


def test_the_run_stays_finished_and_a_larger_number_continues_it(config):
    assert ended(config) == 10
    inputs = check_inputs(config, alone())
    assert (inputs.finished, inputs.last_step) == (True, 10)
    assert "at step 10 of 16" in finished_notice(config.out, inputs.steps, inputs.last_step)
    more = replace(config, stop_when_worse=4)
    with pytest.raises(ValueError, match="--allow stop_when_worse"):
        check_inputs(more, alone())
    more = replace(more, allow=("stop_when_worse",))
    assert not check_inputs(more, alone()).finished
    assert ended(more) == 16
    assert (config.out / "checkpoints" / "best").resolve().name == "step_000016"


def test_a_lost_status_or_checkpoint_changes_nothing_about_where_it_stops(config):
    assert ended(config) == 10
    weights = final_bytes(config.out)
    (config.out / "status.json").write_text("{")
    assert ended(config) == 10
    assert lines(config.out)[-1]["step"] == 10
    shutil.rmtree(config.out / "checkpoints" / "step_000010")
    assert ended(config) == 10
    assert final_bytes(config.out) == weights


def test_a_run_that_was_killed_stops_at_the_same_step(config):
    config = replace(config, save=KEEP_ALL)
    ended(config)
    whole, weights = lines(config.out), final_bytes(config.out)
    forget_after(config.out, 6)
    assert ended(config) == 10
    assert list(map(deterministic, lines(config.out))) == list(map(deterministic, whole))
    assert final_bytes(config.out) == weights
    assert read_json(config.out / "checkpoints" / "latest" / "results.json")["best"]["worse"] == 3


def test_a_run_without_the_flag_names_its_best_checkpoint_too(config, monkeypatch):
    monkeypatch.setitem(LOSSES, 16, 2.6)
    config = replace(config, stop_when_worse=None)
    run = run_to_end(config)
    assert (run.step, dict(best_rows(run))["best checkpoint"].split(",")[0]) == (
        16,
        str(run.folder.checkpoint(14)),
    )


def test_a_run_that_only_got_worse_names_the_weights_before_it(config, monkeypatch):
    monkeypatch.setitem(LOSSES, 0, 1.0)
    run = built(config)
    finish(run)
    assert run.step == 6
    rows = dict(best_rows(run))
    assert rows["best weights"] == "those before the first step: validation loss 1.0000"
    assert "checkpoint" not in rows["best weights"]


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"stop_when_worse": 0}, "use 1 or more, or omit it"),
        ({"eval": EvalConfig(every=0)}, "give an --eval.every such as 100, or omit"),
        ({"save": SaveConfig(keep_best=0)}, "give --save.keep-best 1 or more"),
    ],
)
def test_what_can_never_stop_a_run_is_refused_with_a_cure(changes, cure):
    with pytest.raises(ValueError, match=cure):
        Config(**{"stop_when_worse": 3} | changes)
