"""Tests of bench/recheck_cost.py: blocks of steps with and without the reader."""

import pytest

from bench import recheck_cost
from tests.runs import built, nano_config
from train.loop import train


def test_the_reader_runs_in_its_blocks_and_in_no_other(tmp_path):
    run = built(nano_config(tmp_path, steps=recheck_cost.WARM_UP + 41, data_recheck_hours=0))
    blocks = recheck_cost.Blocks(run, 10, [1, 0, 0, 50])
    train(run)
    run.close()
    assert [len(blocks.seconds(clock)) for clock in (0, 1)] == [4, 4]
    assert [seconds > 0 for seconds in blocks.reader_seconds][1:3] == [False, False]
    assert len(blocks.reader_seconds) == 4
    assert blocks.reader is None


def test_adjacent_blocks_that_differ_give_the_ratio_and_those_of_one_kind_the_noise():
    found = recheck_cost._ratios([1.1, 1.0, 2.0, 2.2])
    assert found["ratios"] == pytest.approx([1.1, 1.1])
    assert found["median_noise"] == pytest.approx(0.5)
