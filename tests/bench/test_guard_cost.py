"""Tests of bench/guard_cost.py: blocks of steps without guards, and the time of each guard."""

import pytest

from bench import guard_cost
from tests.runs import built, lines, nano_config
from train.guards.spikes import GuardConfig
from train.loop import train

GUARD = GuardConfig(window=8)


def test_guards_are_off_in_blocks_without_them_and_on_in_the_others(tmp_path):
    config = nano_config(tmp_path, steps=guard_cost.WARM_UP + 41, guard=GUARD)
    run = built(config)
    blocks = guard_cost.Blocks(run, 10, [True, False, False, True])
    train(run)
    blocks.switch.turn(True)
    run.close()
    judged = {line["step"] for line in lines(config.out) if "guard/loss_z" in line}
    assert not judged & set(range(15, 32))
    assert {11, 40} <= judged
    assert [len(blocks.seconds(clock)) for clock in (0, 1)] == [4, 4]
    assert guard_cost.train.__globals__["check"] is guard_cost.check


def test_adjacent_blocks_that_differ_give_the_ratio_and_those_of_one_kind_the_noise():
    found = guard_cost.summary([1.1, 1.0, 2.0, 2.2])
    assert found["ratios"] == pytest.approx([1.1, 1.1])
    assert found["noise"] == [0.5]
    assert found["median_ratio"] == pytest.approx(1.1)


def test_every_guard_is_timed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(guard_cost, "CALLS", 10)
    run = built(nano_config(tmp_path, steps=4, guard=GUARD))
    train(run)
    found = guard_cost.alone(run)
    run.close()
    assert len(found) == 8
    assert all(seconds >= 0 for seconds in found.values())
