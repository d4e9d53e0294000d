"""Disk space: a run whose checkpoints do not fit is refused."""

import pytest

from storage.run_folder import RunFolder
from train.checkpoints.disk_space import check_space, space_for_checkpoints
from train.config import SaveConfig


def test_a_disk_with_too_little_space_is_refused(tmp_path):
    space = space_for_checkpoints(RunFolder(tmp_path / "run"), SaveConfig(), 100, 10**15)
    with pytest.raises(ValueError, match="GB free, 3 checkpoints and one that is being written"):
        check_space(space)
