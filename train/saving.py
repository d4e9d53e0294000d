"""When a checkpoint is due, and how one is begun."""

import logging
import time
from contextlib import suppress

from parallel.collectives import broadcast_object, set_collective_timeout
from storage.ownership.folder_lock import FolderLost
from train.checkpoints.checkpoint import validation_loss_of
from train.checkpoints.host_copy import state_tensors
from train.checks import is_compared
from train.run import Run
from train.schedule import branch_step

LAST_SAVE_SECONDS = 1800.0
_STOP_POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


def save_due(run: Run) -> bool:
    """Whether this rank should write a checkpoint now. Only rank 0 ever should."""
    if not run.ranks.is_main or run.step in (0, run.saver.begun_step):
        return False
    config = run.config.save
    if any(every and run.step % every == 0 for every in (config.every, config.keep_every)):
        return True
    if run.step in (run.steps, branch_step(run.steps, run.config.schedule)):
        return True
    if _is_best(run):
        return True
    minutes = (time.monotonic() - run.saver.begun_at) / 60
    by_clock = config.every_minutes > 0 and minutes >= config.every_minutes
    # What is due by the clock can wait for the previous save, and until replicas were compared.
    return by_clock and not run.saver.busy and is_compared(run)


def _is_best(run: Run) -> bool:
    """Whether the present validation loss is among the best, whose checkpoints are kept."""
    loss, keep_best = run.fresh_results.get("val/loss"), run.config.save.keep_best
    if loss is None or not keep_best:
        return False
    found = (validation_loss_of(path) for path in run.folder.all_checkpoints())
    kept = sorted(other for other in found if other is not None)
    return len(kept) < keep_best or float(loss) < kept[keep_best - 1]


def save(run: Run) -> None:
    """Begin a checkpoint of the present step on rank 0. Training waits only for the host copy."""
    if not run.ranks.is_main:
        return
    started = time.perf_counter()
    if not _wait_for_previous_save(run):
        if run.stop.wanted:
            return  # the last save follows at once
        seconds, config = time.monotonic() - run.saver.begun_at, run.config.save
        log.warning(
            "no checkpoint of step %d: that of step %d has been in the making for %.0f s, and the "
            "other ranks wait no longer; make saves rarer than --save.every %d, --save.keep-every "
            "%d and --save.keep-best %d do",
            *(run.step, run.saver.begun_step, seconds),
            *(config.every, config.keep_every, config.keep_best),
        )
        return
    tensors = run.saver.host_copy.take(state_tensors(run.model, run.learner.optimizer))
    run.saver.begin(run.contents(tensors), stall_seconds=time.perf_counter() - started)


def add_results(run: Run) -> None:
    """Add what was just evaluated to the checkpoint of this step, which was begun before.

    What takes long comes after the save: if the run is killed meanwhile, no step is lost.
    """
    evaluated = run.saver.begun_step == run.step == run.results.get("step")
    if run.ranks.is_main and evaluated and _wait_for_previous_save(run):
        run.saver.add_results(run.results)


def _wait_for_previous_save(run: Run) -> bool:
    """Wait for the save in flight, half as long as the other ranks wait for this one.

    Returns whether it is done.
    """
    if run.ranks.world_size == 1:
        run.saver.wait()
        return True
    deadline = time.monotonic() + run.progress.watch.seconds / 2
    while run.saver.busy and time.monotonic() < deadline and not run.stop.wanted:
        run.saver.wait(_STOP_POLL_SECONDS)
    run.saver.log_failure()
    return not run.saver.busy


def save_and_wait(run: Run) -> None:
    """Write a checkpoint of the present step and wait until it is on disk.

    The other ranks wait as well, so that one of them can write it if rank 0 dies meanwhile.
    Raises: OSError if it cannot be written. FolderLost on every rank, without a save, if the run
    folder is no longer this run's.
    """
    set_collective_timeout(LAST_SAVE_SECONDS)
    run.arm_watchdog(LAST_SAVE_SECONDS)
    if run.ranks.is_main:
        run.saver.wait()
        add_results(run)
        run.saver.wait()
        with suppress(FolderLost):
            run.folder.check()
        if run.saver.saved_step != run.step and not run.folder.lost:
            save(run)
            run.saver.wait_or_raise()
    if lost := broadcast_object(run.folder.lost):
        raise FolderLost(lost)
