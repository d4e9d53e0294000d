"""How a run ends: what it leaves on disk, what status.json says, and with which code.

Weights and moments are the same on every rank, so when one dies any other can write them.
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
from parallel.stop_signals import PREEMPTED_CODE, StopRequest
from storage.checkpoint_folder import step_of
from storage.run_folder import RunFolder, State
from train.checkpoints.checkpoint import CheckpointContents, write_checkpoint
from train.checkpoints.host_copy import state_tensors
from train.checks import StopTraining
from train.loop import train
from train.progress import SilentRank
from train.report import write_report
from train.run import Run
from train.saving import LAST_SAVE_SECONDS

FAILED_CODE = 1
PEER_LOST_CODE = 76  # EX_PROTOCOL of sysexits.h: another rank is gone, start again
INTERRUPTED_CODE = 130  # 128 + SIGINT, as shells say
log = logging.getLogger(__name__)


def finish(run: Run) -> int:
    """Train what is left, and leave a folder that says how it ended; returns the exit code.

    Raises: what went wrong, where this is the only rank.
    """
    try:
        state = train(run)
    except SystemExit:
        state = "preempted"  # before the first step: nothing is lost
        _close(run, state, run.stop.reason)
    except KeyboardInterrupt:
        _close(run, "failed", "a second SIGINT forced the end; the last checkpoint is sound")
        return _intended_exit(INTERRUPTED_CODE)
    except StopTraining as error:
        _close(run, "failed", str(error))
        prevent_restart()
        raise
    except Exception as error:
        return _exit_after_failure(run, error)
    else:
        asked = run.stop.reason or "a stop asked of another rank"
        _close(run, state, asked if state == "preempted" else "")
        if run.ranks.is_main:
            log.info("\n%s at step %d\n%s", state, run.step, write_report(run))
    return 0 if state == "finished" else _intended_exit(PREEMPTED_CODE)


@contextmanager
def record_early_preemption(out: Path, stop: StopRequest) -> Iterator[None]:
    """Around all that precedes a run: a stop there is a preemption, and status.json says so.

    Not so where another process writes, something else lies, or the run is finished; and a user's
    mistake leaves no status, for then nothing was begun.
    """
    try:
        yield
    except SystemExit as error:
        folder = RunFolder(out)
        if error.code == PREEMPTED_CODE and rank_from_environment() == 0:
            with suppress(OSError, ValueError):  # of a status that cannot be read or a taken lock
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
    """Say on rank 0 how it ended, once nothing writes any more; a full disk is only said."""
    run.saver.wait()
    if run.ranks.is_main:
        try:
            run.folder.write_status(state, run.step, reason)
        except OSError as error:
            log.error("status.json cannot be written (%s); it should say: %s", error, state)
    run.close()


def _exit_after_failure(run: Run, error: Exception) -> int:
    """Save the last whole step before this process ends; the launcher then starts the run again.

    Raises: `error`, where this is the only rank.
    """
    run.arm_watchdog(LAST_SAVE_SECONDS)
    alone = run.ranks.world_size == 1
    reason = f"{type(error).__name__}: {error}"
    log.error("step %d failed on rank %d: %s", run.step, run.ranks.rank, reason, exc_info=not alone)
    patience = SHORT_PATIENCE_SECONDS if is_disconnect(error) else PATIENCE_SECONDS
    saved, roll_call = None, LivenessCheck(patience)
    try:
        saved = emergency_checkpoint(run, reason)
    except Exception as second:  # whatever it is, the first error is the one to tell
        log.error("the last step could not be saved either: %s", second)
    if saved is not None:
        log.error("rank %d: step %d is saved, nothing is lost", run.ranks.rank, saved)
    if unresponsive_ranks := roll_call.unresponsive_ranks():
        log.error("no answer from rank %s", ", ".join(map(str, unresponsive_ranks)))
    if dump_flight_record(run.folder.path / "flight_recorder" / f"rank_{run.ranks.rank}.json"):
        log.error("rank %d: NCCL's flight record is written", run.ranks.rank)
    _close(run, "failed", reason)
    if alone:
        raise error
    logging.shutdown()
    # Leaving as usual would wait for a process group that has lost a member.
    os._exit(PEER_LOST_CODE if is_peer_failure(error) else FAILED_CODE)


def is_disconnect(error: Exception) -> bool:
    """Whether a peer's process is gone, as its kernel said: then all others fail at once too."""
    text = str(error).lower()
    return any(word in text for word in ("connection closed", "connection reset", "broken pipe"))


def is_peer_failure(error: Exception) -> bool:
    """Whether an error came from a collective: another rank is dead or silent."""
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout")
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, SilentRank | ConnectionError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )


def emergency_checkpoint(run: Run, reason: str) -> int | None:
    """Write the state after the last whole update, unless another survivor has; returns its step.

    None if there is nothing new to write, or if the state is not whole.
    """
    run.saver.wait()
    with suppress(StopTraining, SilentRank):
        run.report()  # the line of the last step, which rank 0 may not live to write
    stuck = run.progress.stuck
    step = run.step if stuck is None else stuck.step
    if step == 0:
        return None
    with run.folder.emergency_save_lock():
        # There may be 30 s for all of this: nothing is digested that cannot make it needless.
        named = next(map(step_of, run.folder.all_checkpoints()), 0)
        newest = run.folder.recover_newest_checkpoint() if named >= step else None
        if newest is not None and step_of(newest) >= step:
            return None
        contents = last_consistent_state(run)  # host memory may not hold a copy of every rank's
        if contents is None:
            return None
        write_checkpoint(run.folder, contents)
        run.folder.write_status("failed", step, reason)
    return step


def last_consistent_state(run: Run) -> CheckpointContents | None:
    """The newest state that is that of a whole number of updates, on the host.

    While CUDA hangs in a step's reduction its weights are still those before the step. They are
    copied beside the hanging work; if that went on meanwhile, the copy may be torn and is dropped.
    """
    tensors = state_tensors(run.model, run.optimizer)
    stuck = run.progress.stuck
    if stuck is None:
        return run.contents(tensors) if run.consistent else None
    copy = run.host_copy.take(tensors, queued_first=False)
    run.host_copy.wait()
    if run.host_copy.update_has_begun(stuck.step):
        return None
    contents = run.contents(copy)
    lines = [line for line in contents.position.lines if line["step"] < stuck.step]
    position = replace(
        contents.position,
        step=stuck.step,
        next_window=stuck.first_window,
        lines=lines,
        windows=run.windows - run.plan.windows * (run.step - stuck.step),
    )
    return replace(contents, position=position)
