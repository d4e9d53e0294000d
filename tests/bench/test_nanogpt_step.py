"""Tests of bench/nanogpt_step.py and bench/peer_process.py: tokens, model, process."""

import numpy as np
import pytest
import torch

from bench.nanogpt_step import read_model_file, write_tokens
from bench.peer_process import PeerProcess
from tests.data_sets import tiny_data_set


def test_nanogpt_reads_the_same_tokens_as_we_do(tmp_path):
    data = tiny_data_set(tmp_path / "set", documents=20, shards=2)
    write_tokens(data, tmp_path / "train.bin")
    tokens = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    shards = [np.load(data.folder / f"train_{i:06d}.npy") for i in range(2)]
    np.testing.assert_array_equal(tokens, np.concatenate(shards))


def test_a_folder_without_nanogpts_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no model.py; give a checkout"):
        read_model_file(tmp_path)


class Counter:
    """A trainer for tests; its loss is the number of its steps, counted from `first`."""

    def __init__(self, first):
        self.steps = first

    def step(self):
        self.steps += 1
        return torch.tensor(self.steps)


def test_a_trainer_in_a_process_of_its_own_takes_one_step_for_each_call():
    peer = PeerProcess(Counter, 5)
    assert [peer.step().item(), peer.step().item()] == [6, 7]
    peer.close()
    assert peer.exit_code == 0
