"""What a watcher must know about a run in training: is it alive, what are its settings.

It also pins a checkpoint, so that the trainer's pruning cannot delete it while it is read.
"""

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.subject import EvalOptions
from storage.checkpoint_folder import MANIFEST, weights_sha256
from storage.run_folder import RunFolder

_IDLE_SECONDS = 60.0  # without a change, before a run counts as failed or dead
UNKNOWN_DIGEST = ""  # of weights without a readable manifest
PINNED_PREFIX = ".evaluating_"  # + a checkpoint's name: the folder of links to its files

log = logging.getLogger(__name__)


class RunLiveness:
    """Whether a run is still training, polled repeatedly; each change of state is logged once.

    A run is active if its status, metrics, configuration, lock or list of checkpoints changed
    since the last poll.
    """

    def __init__(self, run: RunFolder, idle_minutes: float | None) -> None:
        self.run = run
        self.idle_minutes = idle_minutes
        self._last_seen: tuple[object, ...] = ()
        self._last_change = time.monotonic()
        self._dead = False
        self._last_message = ""

    def poll(self) -> str:
        """Why the run will write no more checkpoints; empty while it may write some."""
        self._update()
        status = self.run.read_status() or {}
        state, step = status.get("state"), status.get("step")
        reason = f" ({status['reason']})" if status.get("reason") else ""
        if state == "finished" or (state == "failed" and self._idle_seconds >= _IDLE_SECONDS):
            return f"{self.run.path} {state} at step {step}{reason}"
        if state is None:
            self._log_change(f"{self.run.path} holds no run yet; waiting for it to start")
        elif state == "preempted":
            self._log_change(
                f"{self.run.path} was preempted at step {step}{reason}; waiting for it"
            )
        elif state == "failed":  # torchrun or SLURM may restart it at once
            self._log_change(
                f"{self.run.path} failed at step {step}{reason}; waiting {_IDLE_SECONDS:g} seconds "
                "for a restart"
            )
        else:
            self._update_dead()
            self._log_change(
                f"{self.run.path} has status running, but no process holds its lock: it died after "
                f"step {step} or later; waiting for a restart"
                if self._dead
                else f"{self.run.path} is running"
            )
        limit = self.idle_minutes
        if limit is not None and self._idle_seconds >= 60 * limit:
            return f"{self.run.path} has not changed for {limit:g} minutes"
        return ""

    @property
    def _idle_seconds(self) -> float:
        return time.monotonic() - self._last_change

    def _update(self) -> None:
        run = self.run
        files = (run.status, run.metrics, run.config, run.path / "lock")
        times = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
        seen = (times, tuple(path.name for path in run.all_checkpoints()))
        # File times are compared with earlier ones, never with this machine's clock: the files
        # may be on a network disk of a machine whose clock differs.
        if seen != self._last_seen:
            self._last_seen, self._last_change, self._dead = seen, time.monotonic(), False

    def _update_dead(self) -> None:
        """A run with status running is dead if it is inactive and no process holds its lock."""
        # `is_locked` briefly takes a free lock, which a restart needs; so do not repeat it.
        if not self._dead and self._idle_seconds >= _IDLE_SECONDS:
            self._dead = not self.run.is_locked()

    def _log_change(self, text: str) -> None:
        if text != self._last_message:
            log.info("%s", text)
            self._last_message = text


def with_run_defaults(
    record: dict[str, Any], options: EvalOptions, tasks: tuple[str, ...]
) -> EvalOptions:
    """`options`, where those not given have the values of the run's own evaluations."""
    own, ran = record["config"]["eval"], record["run"]
    files = [text for text in own["task_file"] if text.partition("=")[0] in tasks]
    hellaswag_file = options.hellaswag_file
    not_given = hellaswag_file is None and "hellaswag" not in options.files
    if not_given and own["hellaswag_file"] and "hellaswag" in tasks:
        hellaswag_file = Path(own["hellaswag_file"])
    return replace(
        options,
        hellaswag_file=hellaswag_file,
        task_file=(*files, *options.task_file),  # of two files for one task the last one is used
        items=options.items or own["items"],
        micro_batch=options.micro_batch or ran["micro_batch"],
        dtype=ran["dtype"] if options.dtype == "auto" else options.dtype,
    )


def pin_checkpoint(checkpoint: Path) -> Path:
    """Make a folder of hard links to the checkpoint's files, so that pruning does not delete them.

    Returns that folder, or the checkpoint itself on a file system without hard links.
    Raises: FileNotFoundError if the checkpoint is already being deleted.
    """
    # Without links, a run that prunes faster than its watcher evaluates would delete files while
    # they are read. Over NFS, deleting a memory-mapped file on another machine kills its reader.
    pinned = checkpoint.with_name(PINNED_PREFIX + checkpoint.name)
    shutil.rmtree(pinned, ignore_errors=True)
    try:
        for path in [checkpoint / MANIFEST, *checkpoint.rglob("*")]:
            link = pinned / path.relative_to(checkpoint)
            if not path.is_dir() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, link)
    except FileNotFoundError:
        shutil.rmtree(pinned, ignore_errors=True)
        raise
    except OSError:  # the file system has no hard links
        shutil.rmtree(pinned, ignore_errors=True)
        return checkpoint
    return pinned


def weights_digest(checkpoint: Path) -> str:
    """The weights' sha256 from the manifest; UNKNOWN_DIGEST if that is missing or damaged."""
    try:
        return weights_sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN_DIGEST
