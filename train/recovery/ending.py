"""How a run ends: what it leaves on disk, what status.json says, and the exit code.

Weights and moments are the same on every rank. If one rank dies, any other can write them.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from parallel.ranks import job_id, prevent_restart, rank_from_environment
from parallel.rendezvous import (
    PATIENCE_SECONDS,
    SHORT_PATIENCE_SECONDS,
    LivenessCheck,
    dump_flight_record,
)
from parallel.stop_signals import StopRequest
from storage.checkpoint_folder import step_of
from storage.exit_codes import (
    FAILED_CODE,
    FOLDER_LOST_CODE,
    GAVE_UP_CODE,
    INTERRUPTED_CODE,
    PEER_LOST_CODE,
    PREEMPTED_CODE,
)
from storage.ownership.folder_lock import FolderLost
from storage.records.run_records import State
from storage.run_folder import RunFolder
from train.checkpoints.checkpoint import CheckpointContents, write_checkpoint
from train.checkpoints.host_copy import state_tensors
from train.checks import StopTraining
from train.loop import train
from train.progress import UnresponsiveRank
from train.reporting.best_checkpoint import why_it_stopped
from train.reporting.closing_table import write_report
from train.run import Run
from train.saving import LAST_SAVE_SECONDS

log = logging.getLogger(__name__)


def finish(run: Run) -> int:
    """Train to the end and record in the run folder how the run ended; returns the exit code.

    Raises: the error that ended training, if this is the only rank.
    """
    try:
        return _finish(run)
    except KeyboardInterrupt:  # a second Ctrl-C while the end is being recorded
        return _intended_exit(INTERRUPTED_CODE)


def _finish(run: Run) -> int:
    try:
        state = train(run)
    except FolderLost as error:
        return _leave_folder(run, error)
    except SystemExit:  # a stop before the first step: nothing is lost
        state = "preempted"
        _close(run, state, run.stop.reason)
    except KeyboardInterrupt:
        _close(run, "failed", "a second SIGINT forced the end; the last checkpoint is sound")
        return _intended_exit(INTERRUPTED_CODE)
    except StopTraining as error:
        _close(run, "failed", str(error))
        if run.ranks.is_main:  # on all ranks alike
            log.error("error: %s", error)
        return _intended_exit(GAVE_UP_CODE)
    except Exception as error:
        return _exit_after_failure(run, error)
    else:
        asked = run.stop.reason or "a stop asked of another rank"
        _close(run, state, asked if state == "preempted" else why_it_stopped(run))
        if run.folder.lost:
            return _intended_exit(FOLDER_LOST_CODE)
        _report(run, state)
    return 0 if state == "finished" else _intended_exit(PREEMPTED_CODE)


def _leave_folder(run: Run, error: FolderLost) -> int:
    """End a run whose folder is no longer its own: nothing is written, and nothing restarts it."""
    if run.ranks.is_main:
        log.error("stopped at step %d: %s", run.step, error)
    run.close()
    return _intended_exit(FOLDER_LOST_CODE)


def _report(run: Run, state: State) -> None:
    """Print the closing table on rank 0. A report that fails does not change how a run ended."""
    if not run.ranks.is_main:
        return
    log.info("\n%s at step %d", state, run.step)
    try:
        run.folder.check()
        log.info("%s", write_report(run))
    except Exception as error:
        log.error("the closing report failed (%s: %s)", type(error).__name__, error)


@contextmanager
def record_early_preemption(out: Path, stop: StopRequest) -> Iterator[None]:
    """Around everything that precedes a run: record a stop there as a preemption in status.json.

    Nothing is recorded where another process writes, where the folder holds something else, or
    where the run is finished. A user error leaves no status, because no run has begun.
    """
    try:
        yield
    except SystemExit as error:
        folder = RunFolder(out)
        if error.code == PREEMPTED_CODE and rank_from_environment() == 0:
            with suppress(OSError, ValueError):  # the lock is taken, or the status unreadable
                if not folder.unexpected_files() and not folder.is_finished():
                    if not folder.is_ours():
                        folder.lock(job_id())
                    newest = next(map(step_of, folder.all_checkpoints()), 0)
                    folder.write_status("preempted", newest, stop.reason)
        folder.unlock()
        raise


def _intended_exit(code: int) -> int:
    prevent_restart()
    return code


def _close(run: Run, state: State, reason: str) -> None:
    """Record the end on rank 0 once no save is in flight. A failure to do so is only logged."""
    run.saver.wait()
    if run.ranks.is_main:
        try:
            run.folder.write_status(state, run.step, reason)
        except FolderLost as error:
            log.error("%s", error)
    run.close()


def _exit_after_failure(run: Run, error: Exception) -> int:
    """Save the last consistent state before this process ends. torchrun then restarts the run.

    Raises: `error`, if this is the only rank.
    """
    run.arm_watchdog(LAST_SAVE_SECONDS)
    alone = run.ranks.world_size == 1
    reason = f"{type(error).__name__}: {error}"
    log.error("step %d failed on rank %d: %s", run.step, run.ranks.rank, reason, exc_info=not alone)
    patience = SHORT_PATIENCE_SECONDS if is_disconnect(error) else PATIENCE_SECONDS
    saved, check = None, LivenessCheck(patience)
    try:
        saved = emergency_checkpoint(run, reason)
    except Exception as second:  # the first error is the one to raise
        log.error("the last step could not be saved either: %s", second)
    if saved is not None:
        log.error("rank %d: step %d is saved, nothing is lost", run.ranks.rank, saved)
    if missing := check.unresponsive_ranks():
        log.error("no answer from rank %s", ", ".join(map(str, missing)))
    if not run.folder.lost:
        _dump_flight_record(run)
    _close(run, "failed", reason)
    if run.folder.lost:
        prevent_restart()
    if alone and run.folder.lost:
        return FOLDER_LOST_CODE
    if alone:
        raise error
    logging.shutdown()
    # A normal exit would wait for a process group that has lost a member.
    code = PEER_LOST_CODE if is_peer_failure(error) else FAILED_CODE
    os._exit(FOLDER_LOST_CODE if run.folder.lost else code)


def _dump_flight_record(run: Run) -> None:
    """Write what NCCL did last, if it can be written: the end of the run does not wait for it."""
    path = run.folder.path / "flight_recorder" / f"rank_{run.ranks.rank}.json"
    try:
        if dump_flight_record(path):
            log.error("rank %d: NCCL's flight record is written", run.ranks.rank)
    except Exception as error:
        log.error("rank %d: NCCL's flight record cannot be written (%s)", run.ranks.rank, error)


def is_disconnect(error: Exception) -> bool:
    """Whether the kernel reported that a peer's process is gone. Then all others fail at once."""
    text = str(error).lower()
    return any(word in text for word in ("connection closed", "connection reset", "broken pipe"))


def is_peer_failure(error: Exception) -> bool:
    """Whether an error came from a collective: another rank is dead or does not respond."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout")
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, UnresponsiveRank | ConnectionError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def emergency_checkpoint(run: Run, reason: str) -> int | None:
    """Write the state after the last complete update, unless another rank has; returns its step.

    None if there is nothing new to write, or if the state is not consistent.
    Raises: FolderLost if the run folder is no longer this run's.
    """
    run.folder.check()
    run.saver.wait()
    with suppress(StopTraining, UnresponsiveRank):
        run.write_line()  # of the last step: rank 0 may not live to write it
    stuck = run.progress.watch.stuck
    step = run.step if stuck is None else stuck.step
    if step == 0:
        return None
    with run.folder.emergency_save_lock():
        # torchrun may leave 30 s for all of this, so a checkpoint is only verified if its name
        # says that it could make this one needless.
        named = next(map(step_of, run.folder.all_checkpoints()), 0)
        newest = run.folder.recover_newest_checkpoint() if named >= step else None
        if newest is not None and step_of(newest) >= step:
            return None
        contents = last_consistent_state(run)  # inside the lock: one host copy at a time
        if contents is None:
            return None
        write_checkpoint(run.folder, contents)
        run.folder.write_status("failed", step, reason)
    return step


def last_consistent_state(run: Run) -> CheckpointContents | None:
    """The newest state after a whole number of updates, in host memory; None if there is none.

    While CUDA hangs in a step's reduction, its weights are still those before the step. They are
    copied beside the hanging work. If that work continued meanwhile, the copy may mix two states
    and is dropped.
    """
    tensors = state_tensors(run.model, run.learner.optimizer)
    stuck = run.progress.watch.stuck
    if stuck is None:
        return run.contents(tensors) if run.is_consistent else None
    host_copy = run.saver.host_copy
    copy = host_copy.take(tensors, queued_first=False)
    host_copy.wait()
    if host_copy.update_has_begun(stuck.step):
        return None
    contents = run.contents(copy)
    lines = [line for line in contents.position.lines if line["step"] < stuck.step]
    position = replace(
        contents.position,
        step=stuck.step,
        next_window=stuck.first_window,
        lines=lines,
        guard=run.progress.guard.history(stuck.step),
        windows=run.cursor.windows - run.plan.windows * (run.cursor.updates - stuck.step),
    )
    return replace(contents, position=position)
