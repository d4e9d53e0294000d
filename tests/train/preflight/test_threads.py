"""Threads of a process: as given, or as a run with `--reduction tree` began."""

import pytest
import torch

from tests.runs import alone, built, nano_config
from train.preflight.inputs import check_inputs
from train.preflight.threads import set_threads


@pytest.fixture(autouse=True)
def _own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_after(config, recorded=None):
    """The number of threads that a process which had one computes with."""
    torch.set_num_threads(1)
    set_threads(config, alone(), recorded)
    return torch.get_num_threads()


def test_a_number_is_taken_and_only_a_tree_keeps_the_recorded_one(tmp_path):
    tree = {"reduction": "tree"}
    assert threads_after(nano_config(tmp_path), 3) == 1
    assert threads_after(nano_config(tmp_path, **tree)) == 1
    assert threads_after(nano_config(tmp_path, **tree), 3) == 3
    assert threads_after(nano_config(tmp_path, **tree, threads=2), 3) == 2
    assert threads_after(nano_config(tmp_path, threads=2)) == 2
    with pytest.raises(ValueError, match="threads"):
        nano_config(tmp_path, threads=0)


def test_a_run_that_began_with_two_threads_continues_with_two(tmp_path):
    run = built(nano_config(tmp_path, reduction="tree", threads=2))
    run.close()
    assert run.folder.read_config()["run"]["threads"] == 2
    torch.set_num_threads(1)
    check_inputs(nano_config(tmp_path, reduction="tree"), alone())
    assert torch.get_num_threads() == 2
