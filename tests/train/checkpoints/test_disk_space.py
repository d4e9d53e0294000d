"""Disk space: a run whose checkpoints do not fit is refused."""

from dataclasses import replace

import pytest

from model.estimates.parameters import count_parameters
from model.shapes import SHAPES
from storage.run_folder import RunFolder
from train.checkpoints.disk_space import check_space, space_for_checkpoints
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.schedule import ScheduleConfig


def space(tmp_path, network, optimizer):
    config = Config(optimizer=optimizer)
    return space_for_checkpoints(RunFolder(tmp_path / "run"), config, network, 100)


def test_a_disk_with_too_little_space_is_refused(tmp_path):
    shape = replace(SHAPES["gpt3"], n_layer=1024)
    with pytest.raises(ValueError, match="GB free, 3 checkpoints and one that is being written"):
        check_space(space(tmp_path, shape, AdamWConfig()))


def test_the_checkpoint_at_the_end_of_a_hold_takes_room_too(tmp_path):
    plain = space(tmp_path, SHAPES["demo"], AdamWConfig()).checkpoints
    held = Config(schedule=ScheduleConfig(warmup_steps=0, hold=0.3))
    found = space_for_checkpoints(RunFolder(tmp_path / "run"), held, SHAPES["demo"], 100)
    assert found.checkpoints == plain + 1


def test_a_checkpoint_takes_what_its_optimizer_keeps(tmp_path):
    modern = SHAPES["modern"]
    parameters, matrices = count_parameters(modern).total, count_parameters(modern).blocks
    adamw, muon = (space(tmp_path, modern, kind) for kind in (AdamWConfig(), MuonConfig()))
    assert adamw.checkpoint_bytes == 12 * parameters
    assert muon.checkpoint_bytes == 12 * parameters - 4 * matrices
