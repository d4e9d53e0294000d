"""The benchmarks of what safety costs: guards, saves, and where the time of a recovery goes."""

import json

import pytest

from bench import goodput, guard_cost, save_stall
from bench.timed_start import Marks
from storage.json_lines import read_lines
from tests.runs import built, lines, nano_config
from train.guards.spikes import GuardConfig
from train.loop import train
from train.resume_proof.kills import Kill

GUARD = GuardConfig(window=8)


def test_guards_are_gone_in_the_blocks_without_and_back_in_those_with(tmp_path):
    config = nano_config(tmp_path, steps=guard_cost.WARM_UP + 41, guard=GUARD)
    run = built(config)
    turns = guard_cost.Turns(run, 10, [True, False, False, True])
    train(run)
    turns.switch.turn(True)
    run.close()
    judged = {line["step"] for line in lines(config.out) if "guard/loss_z" in line}
    assert not judged & set(range(15, 32))
    assert {11, 40} <= judged
    assert [len(turns.seconds(clock)) for clock in (0, 1)] == [4, 4]
    assert guard_cost.train.__globals__["check"] is guard_cost.check


def test_neighbours_that_differ_give_the_ratio_and_those_alike_the_noise():
    found = guard_cost.summary([1.1, 1.0, 2.0, 2.2])
    assert found["ratios"] == pytest.approx([1.1, 1.1])
    assert found["noise"] == [0.5]
    assert found["median_ratio"] == pytest.approx(1.1)


def test_every_guard_has_a_cost_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(guard_cost, "CALLS", 10)
    run = built(nano_config(tmp_path, steps=4, guard=GUARD))
    train(run)
    found = guard_cost.alone(run)
    run.close()
    assert len(found) == 7
    assert all(seconds >= 0 for seconds in found.values())


def test_a_save_is_timed_until_it_is_on_disk(tmp_path):
    run = built(nano_config(tmp_path, steps=4))
    saves = [save_stall.timed_save(run) for _ in range(3)]
    assert run.folder.recover_newest_checkpoint().name == "step_000003"
    run.close()
    assert all(one["durable_seconds"] > one["stall_ms"] / 1000 > 0 for one in saves)
    assert "| later, median |" in save_stall.table_of(save_stall.summary(saves))


def test_a_recovery_is_split_at_the_slowest_rank_of_each_stage():
    kill = Kill("all", 20, "every process", resumed=15, seconds=9.0, at=100.0)
    times = {"began": (99.0, 101.0, 102.0), "imported": (103.0, 104.5), "stepped": (108.0, 200.0)}
    marks = [{"stage": stage, "at": at} for stage, some in times.items() for at in some]
    found = goodput.shares(marks, kill)
    assert found == {"began": 2.0, "imported": 2.5, "stepped": 3.5, "line": 1.0}
    told = {"kind": "all", "seconds": 9.0, "repeated": kill.lost, "stages": found}
    sums = {"goodput": 0.5, "steps": 10, "step_milliseconds": 50.0, "seconds": 1.0}
    assert "| Python and its imports | 2.50 |" in goodput.table_of(sums | {"kills": [told]})


def test_a_stage_is_noted_once_and_lines_torn_by_a_kill_are_passed_over(tmp_path):
    path = tmp_path / "marks.jsonl"
    marks = Marks(path)
    step = marks.after(lambda x: x + 1, "stepped")
    assert [step(1), step(2)] == [2, 3]
    with path.open("a") as file:
        file.write('{"stage": "bu')
    found = read_lines(path)
    assert [mark["stage"] for mark in found] == ["stepped"]
    assert json.loads(path.read_text().splitlines()[0])["rank"] == 0
