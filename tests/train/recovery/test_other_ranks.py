"""A run with `--reduction tree` that is killed and continued on other numbers of ranks."""

import os
import signal
import time

import pytest

from storage.retention import SaveConfig
from tests.launching import running
from tests.runs import RECIPES, flags, nano_config, run_to_end, starts
from train.recovery.resume_proof.comparison import compare_exactly
from train.recovery.resume_proof.kills import POLL_SECONDS, Job

STEPS = 45


def killed_at(step, out, processes, command, victims):
    """Start the run on this number of ranks, and kill some after `step` updates."""
    job = Job([], out, processes, 0)
    with running(processes, *command) as ranks:
        deadline = time.monotonic() + 120
        while job.steps_done() < step and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for victim in victims:
            os.kill(ranks.pids[victim], signal.SIGKILL)
    assert job.steps_done() < STEPS, "the run ended before the kill"


@pytest.mark.fault(
    "R2", injected="4, 2, 8 and 1 ranks with --reduction tree, SIGKILLs between", identical=True
)
@pytest.mark.long
def test_a_run_that_goes_from_4_to_2_to_8_to_1_ranks_with_kills_equals_the_straight_one(
    tmp_path,
):
    config = nano_config(
        tmp_path,
        steps=STEPS,
        batch_tokens=256,
        micro_batch=1,
        reduction="tree",
        save=SaveConfig(5, 0),
        **RECIPES["modern"],
    )
    command = flags(config, "--reduction", "tree", "--no-rehearsal")
    for processes, step, victims in ((4, 12, [2]), (2, 25, [0, 1]), (8, 32, [0])):
        killed_at(step, config.out, processes, command, victims)
    run_to_end(config)
    config.out.rename(tmp_path / "other")
    run_to_end(config)
    found = compare_exactly(config.out, tmp_path / "other")
    assert [finding for finding in found if not finding.holds] == []
    begun = starts(tmp_path / "other")
    assert begun[0] == 0
    assert 12 <= begun[1] <= begun[2] < 32 <= begun[3]
