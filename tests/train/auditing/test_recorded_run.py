"""Which settings made each step, from config.json and the changes that starts have recorded."""

import pytest

from tests.runs import GOLDEN
from train.auditing.recorded_run import _stretches, read_recorded_run, segments_of

RUN = GOLDEN.parent / "format_5" / "run"
RECORD = {
    "config": {"optimizer": {"lr": 0.5}, "seed": 1},
    "run": {"world_size": 4, "micro_batch": 8, "torch": "2"},
}


def start(step, ranks=4, changed=(), **more):
    """A line of starts.jsonl."""
    found = {"started_at_step": step, "world_size": ranks, "micro_batch": 8}
    return found | {"changed": [*changed], **more}


def rate(before, now):
    return {"key": "optimizer.lr", "before": before, "now": now}


def ways(*lines):
    """First step, rate and ranks of each stretch."""
    found = _stretches(RECORD, lines)
    return [(s.first, s.settings["optimizer"]["lr"], s.world_size) for s in found]


def test_a_change_counts_from_the_start_that_made_it():
    assert ways(start(0, 1), start(10, 2, [rate(0.1, 0.5)])) == [(0, 0.1, 1), (10, 0.5, 2)]


def test_a_start_that_went_back_replaces_what_came_after():
    lines = start(0, 1), start(20, 2), start(10, 4)
    assert ways(*lines) == [(0, 0.5, 1), (10, 0.5, 4)]


def test_a_smaller_micro_batch_counts_from_the_step_that_ran_out_of_memory():
    line = start(0, 1, out_of_memory_at_step=6) | {"micro_batch": 4}
    found = _stretches(RECORD, [start(0, 1), line])
    assert [(s.first, s.micro_batch) for s in found] == [(0, 8), (6, 4)]


def test_without_any_start_all_steps_are_those_of_the_configuration():
    assert ways() == [(0, 0.5, 4)]


def test_what_affects_rounding_is_known_of_the_last_start_of_an_older_version_only():
    found = _stretches(RECORD, [start(0), start(4)])
    assert [bool(s.made) for s in found] == [False, True]


def test_parts_are_cut_where_another_start_begins():
    run = read_recorded_run(RUN)
    assert [part[:2] for part in run.parts(0, 4)] == [(0, 4)]
    assert segments_of(run) == [(0, 2), (2, 4)]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        read_recorded_run(tmp_path)
