"""How often a run was started, from where, and when to stop starting it by itself."""

import logging
import time

from storage.run_folder import RunFolder

MAX_RESTARTS = 3
FIRST_PAUSE_SECONDS = 2.0
log = logging.getLogger(__name__)


def count_restart(
    folder: RunFolder, step: int, by_itself: bool, halves: bool = False
) -> dict[str, int]:
    """Count this start at `step`; `by_itself` says that no person started it.

    The count starts anew with progress, and with a person. A start that `halves` the micro-batch is
    not counted: it is not the same again, and ends at one window. Before another start at the same
    step a pause gives a busy disk or network time. The holder of the folder's lock calls this.
    Raises: ValueError after MAX_RESTARTS restarts that brought the run no step further.
    """
    last = folder.read_status() or {}
    stuck = by_itself and last.get("state") in ("running", "failed")
    stuck = stuck and last.get("started_at_step") == step
    count = int(last.get("attempts", 0)) + (not halves) if stuck else 1
    if count > 1 + MAX_RESTARTS:
        raise ValueError(
            f"{folder.path} was started {count - 1} times at step {step} and came no further (last "
            f"reason: {last.get('reason') or 'none recorded'}); start it yourself once that is "
            "mended"
        )
    if count > 1 and not halves:
        pause = FIRST_PAUSE_SECONDS * 2 ** (count - 2)
        log.warning("start %d at step %d without progress: pausing %.0f s", count, step, pause)
        time.sleep(pause)
    return {"attempts": count, "started_at_step": step}
