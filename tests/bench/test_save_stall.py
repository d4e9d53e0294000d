"""Tests of bench/save_stall.py: a save is timed until it is on disk."""

from bench import save_stall
from tests.runs import built, nano_config


def test_a_save_is_timed_until_it_is_on_disk(tmp_path):
    run = built(nano_config(tmp_path, steps=4))
    saves = [save_stall.timed_save(run) for _ in range(3)]
    assert run.folder.recover_newest_checkpoint().name == "step_000003"
    run.close()
    assert all(one["durable_seconds"] > one["stall_ms"] / 1000 > 0 for one in saves)
    assert "| later, median |" in save_stall.table_of(save_stall.summary(saves))
