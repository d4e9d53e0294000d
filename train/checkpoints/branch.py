"""A run that continues a checkpoint of another run in a folder of its own (`--branch`)."""

import logging
import shutil
from pathlib import Path
from typing import Any

from storage.atomic import new_folder, put_json, read_json
from storage.checkpoint_folder import (
    RESUME_FILES,
    STATE_FILE,
    is_step_name,
    step_of,
    verify_checkpoint,
    write_manifest,
)
from storage.json_lines import append_line, is_count, read_metrics
from storage.ownership.latest import follow_latest, latest_name
from storage.ownership.run_identity import RUN_ID, identity_of, new_run_id
from storage.run_folder import RunFolder
from train.checkpoints.run_position import check_same_data, load_position
from train.checkpoints.soundness import Resumable, check_resumable
from train.schedule import ScheduleConfig, branch_step

PARENT = "parent"  # in config.json: from which checkpoint of which run this one began
BRANCH_STEPS = "branch_steps"  # there too: steps whose checkpoints are kept
log = logging.getLogger(__name__)


def run_of_branch(branch: Path) -> tuple[RunFolder, Path]:
    """The run that has the checkpoint `branch`, and the checkpoint by its own name.

    Raises: ValueError if it is no checkpoint of a run.
    """
    checkpoint = follow_latest(branch)
    if checkpoint.name == "latest":  # a link
        checkpoint = checkpoint.with_name(latest_name(checkpoint.parent) or "latest")
    folder = RunFolder(checkpoint.parent.parent)
    named = folder.checkpoints == checkpoint.parent and is_step_name(checkpoint.name)
    if not named or not folder.config.is_file():
        raise ValueError(
            f"--branch {branch} is no checkpoint in the folder of a run; give one such as "
            "runs/gpt2/checkpoints/step_000500, or --init for its weights alone"
        )
    folder.identity = identity_of(folder.read_config())
    return folder, checkpoint


def check_branch(branch: Path, steps: int, fingerprint: str) -> RunFolder:
    """The run that a new run continues.

    Raises: ValueError if its checkpoint `branch` cannot be continued on these data, to `steps`.
    """
    parent, checkpoint = run_of_branch(branch)
    verify_checkpoint(checkpoint, RESUME_FILES)
    if foreign := parent.why_foreign(checkpoint):
        raise ValueError(f"--branch {branch} is not of the run that has it ({foreign})")
    check_same_data(checkpoint, load_position(checkpoint), fingerprint)
    if step_of(checkpoint) >= steps:
        raise ValueError(
            f"--branch {branch} is at step {step_of(checkpoint)} but steps={steps}; give a larger "
            "--steps"
        )
    return parent


def begin_branch(folder: RunFolder, branch: Path, resumable: Resumable) -> None:
    """Give a run without a checkpoint its first one, a copy of `branch`, with its metrics before.

    The caller must hold the folder's lock. What was killed here begins again with the next start.
    Raises: ValueError if the copy is damaged or not complete.
    """
    parent, source = run_of_branch(branch)
    step, run_id = step_of(source), folder.run_id or new_run_id()
    target = folder.checkpoint(step)
    with new_folder(target, folder.check) as copy:
        shutil.copytree(source, copy, dirs_exist_ok=True)
        verify_checkpoint(copy, RESUME_FILES)
        check_resumable(resumable, copy)
        put_json(copy / STATE_FILE, read_json(copy / STATE_FILE) | {RUN_ID: run_id})
        write_manifest(copy)
        # A checkpoint without a config.json would be in the way of the next start.
        if not folder.config.is_file():
            record = parent.read_config()
            origin = {"path": str(source.absolute()), RUN_ID: parent.run_id, "step": step}
            record["config"]["branch"] = str(branch)
            record.pop(BRANCH_STEPS, None)
            folder.write_config(record | {RUN_ID: run_id, PARENT: origin})
    _copy_lines(parent.metrics, folder.metrics, step)
    _copy_lines(parent.digests, folder.digests, step + 1)
    log.info("a new run that continues %s", source)


def _copy_lines(source: Path, target: Path, step: int) -> None:
    """Copy the lines before `step`, so that loss curve and chain of digests are whole."""
    if target.exists():
        return
    try:
        for line in read_metrics(source):
            if line["step"] < step:
                append_line(target, line)
    except OSError as error:  # it only reports
        log.error("%s cannot be copied (%s); it lacks lines", source, error)


def lasting_records(folder: RunFolder, steps: int, schedule: ScheduleConfig) -> dict[str, Any]:
    """What stays in config.json at every start: the run's parent, and the steps kept for branches.

    A run that is extended still has the checkpoint from before its first decay.
    """
    record = folder.read_config() if folder.config.is_file() else {}
    kept = {step for step in record.get(BRANCH_STEPS) or () if is_count(step)}
    kept |= {branch_step(steps, schedule)} - {0}
    parent = {PARENT: record[PARENT]} if PARENT in record else {}
    return parent | ({BRANCH_STEPS: sorted(kept)} if kept else {})
