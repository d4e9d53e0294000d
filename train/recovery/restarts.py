"""Counts automatic restarts of a run, and stops them if they make no progress."""

import logging
import time

from storage.run_folder import RunFolder

# Without progress. nvidia-resiliency-ext stops after the same number (fault_tolerance/config.py in
# https://github.com/NVIDIA/nvidia-resiliency-ext).
_MAX_RESTARTS = 3
FIRST_PAUSE_SECONDS = 2.0  # doubled with each restart
log = logging.getLogger(__name__)


def count_restart(
    folder: RunFolder, step: int, is_automatic: bool, halves: bool = False
) -> dict[str, int]:
    """Count this start at `step`; returns the fields that status.json keeps.

    The caller must hold the folder's lock. `is_automatic`: torchrun or SLURM started the run again,
    not a person. Progress or a manual start resets the count. A start that `halves` the micro-batch
    does not count: it is another attempt, and the micro-batch cannot fall below one window.
    Raises: ValueError after _MAX_RESTARTS restarts without progress.
    """
    last = folder.read_status() or {}
    stuck = is_automatic and last.get("state") in ("running", "failed")
    stuck = stuck and last.get("started_at_step") == step
    count = int(last.get("attempts", 0)) + (not halves) if stuck else 1
    if count > 1 + _MAX_RESTARTS:
        raise ValueError(
            f"{folder.path} was started {count - 1} times at step {step} without progress (last "
            f"reason: {last.get('reason') or 'none recorded'}); start it yourself once that is "
            "fixed"
        )
    if count > 1 and not halves:
        # A busy disk or network may have recovered after the pause.
        pause = FIRST_PAUSE_SECONDS * 2 ** (count - 2)
        log.warning("start %d at step %d without progress: pausing %.0f s", count, step, pause)
        time.sleep(pause)
    return {"attempts": count, "started_at_step": step}
