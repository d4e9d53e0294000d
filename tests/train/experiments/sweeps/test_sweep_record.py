"""sweep.json and the locks of a sweep's folder."""

import json
import shutil

import pytest

from storage.ownership.folder_lock import FolderLock
from tests.train.experiments.sweeps.made_sweeps import VALUES, diverge, made_sweep
from tests.train.experiments.sweeps.test_outcomes import clear
from train.experiments.sweeps.grid import Axis
from train.experiments.sweeps.outcomes import compared_in_bits, outcome_of, point_results
from train.experiments.sweeps.sweep_picture import draw_sweep
from train.experiments.sweeps.sweep_record import (
    SweepPlan,
    read_plan,
    sweep_lock,
    write_record,
)


@pytest.fixture
def plan(tmp_path):
    folder = tmp_path / "sweep"
    runs = tuple(made_sweep(folder, clear))
    axis = Axis("optimizer.lr", tuple(map(str, VALUES)))
    return SweepPlan(folder, ("demo", "--steps", "40"), (axis,), (1, 2, 3), None, runs)


def record_of(plan):
    write_record(plan, [outcome_of(run) for run in plan.runs])
    return json.loads(plan.record.read_text())


def test_the_record_has_every_run_every_combination_and_the_best(plan):
    diverge(plan.runs[0])
    found = record_of(plan)
    assert (found["version"], found["state"], len(found["runs"])) == (1, "finished", 9)
    assert found["command"] == "train/main.py demo --steps 40"
    assert [run["state"] for run in found["runs"]] == ["diverged", *["finished"] * 8]
    assert "val_loss" not in found["runs"][0]
    assert found["runs"][1]["val_loss"] == pytest.approx(2.6175, abs=0.001)
    assert found["best"]["settings"] == {"optimizer.lr": 0.01}
    (other,) = found["best"]["others_minus_best"]
    assert (other["settings"], other["pairs"], other["told_apart"]) == (
        {"optimizer.lr": 0.1},
        3,
        True,
    )
    assert found["points"][0]["diverged"] == 1


def test_a_plan_is_read_back_also_where_the_folder_was_moved(plan, tmp_path):
    record_of(plan)
    assert read_plan(plan.folder) == plan
    shutil.move(plan.folder, tmp_path / "moved")
    moved = read_plan(tmp_path / "moved")
    assert outcome_of(moved.runs[4]).state == "finished"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no sweep.json; give the folder of a sweep"),
        ("{", "sweep.json"),
        ("[]", "not an object, so it is damaged"),
        ('{"version": 1}', "is damaged: words is missing or null but must be a list"),
        ("version 2", "has version 2, and this program reads 1; update Ratchet"),
        ("no axis", "is damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_by_name(plan, content, message):
    found = record_of(plan)
    if content == "version 2":
        content = json.dumps(found | {"version": 2})
    elif content == "no axis":
        content = json.dumps(found | {"settings": [7]})
    plan.record.unlink()
    if content is not None:
        plan.record.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_plan(plan.folder)


def test_one_process_has_all_of_a_sweep_and_several_have_a_shard_each(tmp_path):
    told = r"is being swept by pid .*; stop that sweep or choose another --out"
    with sweep_lock(tmp_path, ""):
        assert FolderLock(tmp_path / ".lock").is_locked()
        refused(tmp_path, "1/2", told)
    with sweep_lock(tmp_path, "1/2"), sweep_lock(tmp_path, "2/2"):
        refused(tmp_path, "", told)
    with sweep_lock(tmp_path, ""):
        pass


def refused(folder, shard, message):
    with pytest.raises(ValueError, match=message), sweep_lock(folder, shard):
        pass


@pytest.mark.parametrize("settings", [1, 2, 3])
def test_a_picture_is_drawn_for_one_two_and_three_settings(plan, settings):
    diverge(plan.runs[2])
    outcomes = [outcome_of(run) for run in plan.runs]
    for number, outcome in enumerate(outcomes):
        more = {"optimizer": ("adamw", "sgd")[number % 2], "batch_tokens": 128 * (1 + number % 2)}
        outcome.run.settings.update(list(more.items())[: settings - 1])
    points = point_results(outcomes)
    draw_sweep(points, compared_in_bits(outcomes), "a title", plan.picture)
    assert plan.picture.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_before_a_run_has_ended(plan):
    for run in plan.runs:
        shutil.rmtree(run.path)
    draw_sweep(point_results([outcome_of(run) for run in plan.runs]), False, "", plan.picture)
    assert not plan.picture.exists()
