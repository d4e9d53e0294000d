"""The newest, every N-th and the best checkpoints stay; a damaged one does not count."""

import pytest

from storage.atomic import write_json
from storage.checkpoint_folder import step_of, write_manifest
from storage.ownership.latest import point_latest_at
from storage.retention import Retention
from storage.run_folder import RunFolder
from tests.storage.checkpoints import checkpoint
from train.checkpoints.checkpoint import validation_loss_of


def sweep(run, newest=1, every=0, best=0):
    Retention(newest, every, best, validation_loss_of).sweep(run)
    return [step_of(path) for path in reversed(run.all_checkpoints())]


def test_latest_follows_and_only_the_newest_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        point_latest_at(checkpoint(run, step))
    assert sweep(run, newest=2) == [2, 3]
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(3).resolve()


def test_every_nth_and_the_best_are_kept(tmp_path):
    run = RunFolder(tmp_path)
    for step, loss in ((4, 3.0), (5, 1.0), (7, 2.0), (8, 2.5), (9, 4.0)):
        results = {"step": step, "metrics": {"val/loss": loss}}
        write_json(checkpoint(run, step) / "results.json", results)
        write_manifest(run.checkpoint(step))
    assert sweep(run, newest=1, every=4, best=2) == [4, 5, 7, 8, 9]
    assert sweep(run, newest=1, every=8, best=1) == [5, 8, 9]


@pytest.mark.fault("S11", injected="2 of 3 checkpoints damaged before a sweep", lost="0")
def test_a_damaged_checkpoint_is_not_counted_and_the_only_good_one_stays(tmp_path, caplog):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        checkpoint(run, step)
    (run.checkpoint(2) / "model.safetensors").write_text("weighty")
    (run.checkpoint(3) / "MANIFEST.json").unlink()
    assert sweep(run, newest=1) == [1, 2, 3]
    assert "not counted among the checkpoints kept" in caplog.text
