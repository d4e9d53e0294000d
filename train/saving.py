"""When a checkpoint is due, and taking one."""

import logging
import time

from parallel.collectives import broadcast_object, set_collective_timeout
from train.checkpoints.checkpoint import validation_loss_of
from train.checkpoints.host_copy import state_tensors
from train.checks import is_compared
from train.run import Run

LAST_SAVE_SECONDS = 1800.0
LOOK_UP_SECONDS = 0.2
log = logging.getLogger(__name__)


def save_due(run: Run) -> bool:
    """Whether this rank should write a checkpoint now; only rank 0 ever should."""
    run.saver.log_failure()
    if not run.ranks.is_main or run.step in (0, run.saver.asked_step):
        return False
    config = run.config.save
    if any(every and run.step % every == 0 for every in (config.every, config.keep_every)):
        return True
    if is_best(run):
        return True
    minutes = (time.monotonic() - run.saver.asked_at) / 60
    by_clock = config.every_minutes > 0 and minutes >= config.every_minutes
    # What is due by the clock can wait for the one before, and until the replicas were compared.
    return by_clock and not run.saver.busy and is_compared(run)


def is_best(run: Run) -> bool:
    """Whether these weights' validation loss is among the best that checkpoints are kept of."""
    loss, most = run.fresh_results.get("val/loss"), run.config.save.keep_best
    if loss is None or not most:
        return False
    found = (validation_loss_of(path) for path in run.folder.all_checkpoints())
    kept = sorted(other for other in found if other is not None)
    return len(kept) < most or float(loss) < kept[most - 1]


def save(run: Run) -> None:
    """Begin a checkpoint of the present step on rank 0; training waits for a copy on the host."""
    if not run.ranks.is_main:
        return
    started = time.perf_counter()
    if not save_before_is_done(run):
        if run.stop.wanted:
            return  # the last save comes at once
        seconds, config = time.monotonic() - run.saver.asked_at, run.config.save
        log.warning(
            "no checkpoint of step %d: that of step %d has been in the making for %.0f s, and the "
            "other ranks wait no longer; make saves rarer than --save.every %d, --save.keep-every "
            "%d and --save.keep-best %d do",
            *(run.step, run.saver.asked_step, seconds),
            *(config.every, config.keep_every, config.keep_best),
        )
        return
    tensors = run.host_copy.take(state_tensors(run.model, run.optimizer))
    stall = time.perf_counter() - started
    run.saver.begin(run.contents(tensors), run.host_copy.wait, stall)
    run.extra["speed/save_stall_milliseconds"] = 1000 * stall


def save_before_is_done(run: Run) -> bool:
    """Wait for the save in flight, well within what other ranks wait for this one."""
    if run.ranks.world_size == 1:
        run.saver.wait()
        return True
    deadline = time.monotonic() + run.progress.patience / 2
    while run.saver.busy and time.monotonic() < deadline and not run.stop.wanted:
        run.saver.wait(LOOK_UP_SECONDS)
    run.saver.log_failure()
    return not run.saver.busy


def save_and_wait(run: Run) -> None:
    """Have a checkpoint of the present step on disk. Raises: OSError if that cannot be.

    The other ranks wait, so that they can write it should rank 0 die meanwhile.
    """
    set_collective_timeout(LAST_SAVE_SECONDS)
    run.arm_watchdog(LAST_SAVE_SECONDS)
    if run.ranks.is_main:
        run.saver.wait()
        if run.saver.saved_step != run.step:
            save(run)
            run.saver.wait_or_raise()
    broadcast_object(run.step)
