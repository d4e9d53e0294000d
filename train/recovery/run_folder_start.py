"""How a start takes the run folder: lock, leftovers, identity, newest sound checkpoint."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from parallel.collectives import any_rank, on_main
from parallel.ranks import Ranks, is_restart, job_folder, job_id
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import step_of
from storage.ownership.run_identity import RunIdentity, identity_of, new_run_id
from storage.run_folder import RunFolder
from train.checkpoints.branch import begin_branch
from train.checkpoints.checkpoint import turn_latest
from train.checkpoints.disk_space import check_writable
from train.checkpoints.run_position import load_position
from train.checkpoints.soundness import Resumable, newest_sound_checkpoint
from train.memory.micro_batch import smaller_requested
from train.recovery.restarts import count_restart

_NOTE = "ratchet_run_folder.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """What rank 0 found in the folder, for all ranks."""

    checkpoint: Path | None
    attempt: dict[str, int]
    identity: RunIdentity


def take_folder(
    out: Path, ranks: Ranks, resumable: Resumable, branch: Path | None
) -> tuple[RunFolder, Path | None]:
    """Lock the folder on rank 0 and find the checkpoint to continue from, for all ranks.

    A run that continues the checkpoint `branch` of another one begins with a copy of it.
    """
    folder = RunFolder(out)
    # Each machine's torchrun counts only the restarts of its own ranks.
    restarted = any_rank(is_restart(), ranks.device)
    try:
        found = on_main(partial(_lock, folder, restarted, resumable, branch))
        folder.attempt, folder.identity = found.attempt, found.identity
        if not ranks.is_main:
            folder.follow()
    except BaseException:  # also a signal must not leave the folder locked
        folder.unlock()
        raise
    return folder, found.checkpoint


def _lock(folder: RunFolder, restarted: bool, resumable: Resumable, branch: Path | None) -> _Found:
    """Lock the folder and prepare it for this start."""
    _check_same_folder(folder, restarted)
    folder.lock(job_id())
    _note_folder(folder)
    check_writable(folder)
    checkpoint = _put_in_order(folder, resumable)
    if checkpoint is None and branch is not None:
        begin_branch(folder, branch, resumable)
        checkpoint = _put_in_order(folder, resumable)
    identity = folder.identity
    assert identity is not None
    # A run of an older version gets its identity now.
    own = identity.run_id or (checkpoint and load_position(checkpoint).run_id) or new_run_id()
    halves = smaller_requested(folder)
    step = 0 if checkpoint is None else step_of(checkpoint)
    attempt = count_restart(folder, step, restarted, halves=halves)
    return _Found(checkpoint, attempt, replace(identity, run_id=own))


def _note_folder(folder: RunFolder) -> None:
    """Leave a note of the folder for the restarts of this job."""
    notes = job_folder()
    if notes is not None:
        with suppress(OSError):
            write_json(notes / _NOTE, folder.place)


def _check_same_folder(folder: RunFolder, restarted: bool) -> None:
    """Raises: ValueError if this is a restart and the folder that the job took is gone.

    A restart would otherwise begin a new run where somebody has moved the old one away.
    """
    notes = job_folder()
    try:
        noted = read_json(notes / _NOTE) if restarted and notes is not None else folder.place
    except (OSError, ValueError):  # the job has not taken a folder, or on another machine
        return
    if noted != folder.place and noted.get("folder") == folder.place["folder"]:
        raise ValueError(
            f"{folder.path} is no longer the folder in which this job began: it was moved, removed "
            "or replaced; to continue the run, give --out with its new place, and to begin anew, "
            "start the same command again"
        )


def _put_in_order(folder: RunFolder, resumable: Resumable) -> Path | None:
    """Remove leftovers, and point `latest` at the newest sound checkpoint, which is returned.

    A process may have been killed between the two renames of a save.
    """
    folder.set_aside_damaged()
    folder.identity = identity_of(folder.read_config() if folder.config.is_file() else None)
    folder.remove_unfinished()
    checkpoint = newest_sound_checkpoint(folder, resumable)
    if checkpoint is not None:
        turn_latest(folder, checkpoint)
    return checkpoint


def confirm_finished(out: Path, steps: int, resumable: Resumable) -> bool:
    """Check that a run that status.json calls finished has its last checkpoint. Rank 0 looks.

    `latest` is put right. If only older checkpoints are sound, the status becomes `preempted` and
    the result is False. A run whose checkpoints were all removed stays finished.
    """
    return on_main(partial(_confirm_finished, RunFolder(out), steps, resumable))


def _confirm_finished(folder: RunFolder, steps: int, resumable: Resumable) -> bool:
    try:
        folder.lock(job_id())
    except (OSError, ValueError):  # an archive that cannot be written, or another start has it
        return True
    try:
        newest = _put_in_order(folder, resumable)
        if newest is None or step_of(newest) >= steps:
            return True
        reason = f"the newest sound checkpoint of the finished run is {newest.name}"
        folder.write_status("preempted", step_of(newest), reason)
    finally:
        folder.unlock()
    log.warning("%s: %s; the steps after it are done again", folder.path, reason)
    return False
