"""Saves that are killed or meet a full disk: there is always a complete checkpoint."""

import json

import pytest

from tests.launching import python


def results(folder, *more):
    """The results of all kills and limits, see tests/saving_faults.py."""
    (folder / "limits").mkdir()
    (folder / "kills").mkdir()
    done = python("tests/saving_faults.py", str(folder), *more, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return results(tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return results(tmp_path_factory.mktemp("many"), "all")


def assert_old_or_new(found, least):
    """After each kill the old or the new checkpoint is used, and no damaged one was seen."""
    *killed, again = found["kills"]
    assert len(killed) >= least
    assert {kill["way"] for kill in killed} == {"call", "byte"}
    for kill in killed:
        assert kill["resumed"] in (4, 6), kill
        assert kill["latest"] in (4, kill["resumed"]), kill
        assert kill["status"] in (4, kill["resumed"]), kill
        assert kill["set_aside"] == [], kill
    assert {kill["resumed"] for kill in killed} == {4, 6}
    assert (again["resumed"], again["latest"], again["status"]) == (6, 6, 6)


def assert_continued(found, least):
    """At each limit the old checkpoint stays and the failure is logged; the next one is saved."""
    limits = found["limits"]
    assert limits["end"] == "finished"
    limited = [step for step in limits["steps"] if step["limit"] is not None]
    assert len(limited) >= least
    for step in limited:
        assert (step["newest"], step["failed"], step["litter"]) == (step["step"] - 1, 1, 0), step
    free = [step for step in limits["steps"] if step["limit"] is None and step["step"]]
    assert all((step["newest"], step["failed"]) == (step["step"], 0) for step in free)


@pytest.mark.fault("S1", injected="SIGKILL before every 5th touch of the disk", lost="interval")
@pytest.mark.fault("P6", injected="SIGKILL while the last save is written", lost="interval")
def test_a_save_killed_at_many_points_leaves_the_old_or_the_new_checkpoint(few):
    assert_old_or_new(few, least=30)


@pytest.mark.long
@pytest.mark.fault("S1", injected="SIGKILL before each touch of the disk", lost="interval")
def test_a_save_killed_before_every_touch_of_the_disk_leaves_a_complete_one(many):
    assert_old_or_new(many, least=150)


@pytest.mark.fault("S4", injected="RLIMIT_FSIZE at 4 sizes, then lifted", lost="0", identical=True)
def test_a_full_disk_at_some_bytes_costs_only_the_save(few):
    assert_continued(few, least=4)
    assert few["limits"]["same"]


@pytest.mark.long
@pytest.mark.fault("S4", injected="RLIMIT_FSIZE at 32 sizes, then lifted", lost="0", identical=True)
def test_a_full_disk_at_any_byte_costs_only_the_save(many):
    assert_continued(many, least=32)
    assert many["limits"]["same"]


@pytest.mark.fault(
    "S7", injected="RLIMIT_FSIZE under TensorBoard and metrics", lost="0", identical=True
)
def test_logs_on_a_full_disk_are_complete_afterwards_and_training_is_the_same(few):
    limits = few["limits"]
    assert limits["failing"] == limits["back"] == ["TensorBoard", "metrics.jsonl"]
    assert limits["lost"] == 0
    assert limits["lines"] == list(range(max(limits["lines"]) + 1))
    assert limits["same"]
