"""A run that another process trains: whether it lives, how it evaluates, what it may prune."""

import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.subject import EvalOptions
from storage.atomic import read_json
from storage.checkpoint_folder import MANIFEST, weights_sha256
from storage.run_folder import RunFolder

QUIET_SECONDS = 60.0  # without a sign of life, before a run is taken for failed or dead
UNKNOWN = ""  # a digest that cannot be had
PINNED_PREFIX = ".evaluating_"  # before a checkpoint's name: the links that `hold` makes

log = logging.getLogger(__name__)


class RunLiveness:
    """How a run stands, asked again and again; each change is said once.

    A sign of life is a change of its status, metrics, configuration, lock or checkpoints.
    """

    def __init__(self, run: RunFolder, idle_minutes: float | None) -> None:
        self.run = run
        self.idle_minutes = idle_minutes
        self._signs: tuple[object, ...] = ()
        self._last_sign = time.monotonic()
        self._dead = False
        self._said = ""

    def poll(self) -> str:
        """Why no more checkpoints are to be expected; nothing while they are."""
        self._update()
        status = self.run.read_status() or {}
        state, step = status.get("state"), status.get("step")
        reason = f" ({status['reason']})" if status.get("reason") else ""
        if state == "finished" or (state == "failed" and self._quiet_seconds >= QUIET_SECONDS):
            return f"{self.run.path} {state} at step {step}{reason}"
        if state is None:
            self._say(f"{self.run.path} holds no run yet; waiting for it to start")
        elif state == "preempted":
            self._say(f"{self.run.path} was preempted at step {step}{reason}; waiting for it")
        elif state == "failed":  # torchrun or SLURM may start it again at once
            self._say(
                f"{self.run.path} failed at step {step}{reason}; waiting {QUIET_SECONDS:g} seconds "
                "for it to be started again"
            )
        elif self._is_dead():
            self._say(
                f"{self.run.path} says running, but no process holds its lock: it died after step "
                f"{step} or later; waiting for it to be started again"
            )
        else:
            self._say(f"{self.run.path} is running")
        limit = self.idle_minutes
        if limit is not None and self._quiet_seconds >= 60 * limit:
            return f"{self.run.path} has shown no sign of life for {limit:g} minutes"
        return ""

    @property
    def _quiet_seconds(self) -> float:
        return time.monotonic() - self._last_sign

    def _update(self) -> None:
        run = self.run
        files = (run.status, run.metrics, run.config, run.path / "lock")
        times = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
        signs = (times, tuple(path.name for path in run.all_checkpoints()))
        if signs != self._signs:  # compared with each other: two machines' clocks may differ
            self._signs, self._last_sign, self._dead = signs, time.monotonic(), False

    def _is_dead(self) -> bool:
        """Whether a run that says it is running has fallen silent and let go of its lock."""
        if not self._dead and self._quiet_seconds >= QUIET_SECONDS:
            self._dead = not self.run.is_locked()
        return self._dead

    def _say(self, text: str) -> None:
        if text != self._said:
            log.info("%s", text)
            self._said = text


def read_run_config(run: RunFolder) -> dict[str, Any]:
    """What config.json says of the run: the configuration, and what followed from it.

    Raises: ValueError if it is not a run's.
    """
    record = read_json(run.config)
    if not isinstance(record, dict) or not {"config", "run"} <= record.keys():
        raise ValueError(f"{run.config} is not a run's; give a folder such as runs/gpt2")
    return record


def with_run_defaults(
    record: dict[str, Any], options: EvalOptions, tasks: tuple[str, ...]
) -> EvalOptions:
    """`options` with what was left open as in the run's own evaluations (its config.json)."""
    own, ran = record["config"]["eval"], record["run"]
    files = [text for text in own["task_file"] if text.partition("=")[0] in tasks]
    hellaswag_file = options.hellaswag_file
    left_open = hellaswag_file is None and "hellaswag" not in options.files
    if left_open and own["hellaswag_file"] and "hellaswag" in tasks:
        hellaswag_file = Path(own["hellaswag_file"])
    return replace(
        options,
        hellaswag_file=hellaswag_file,
        task_file=(*files, *options.task_file),  # of two for one task the later counts
        items=options.items or own["items"],
        micro_batch=options.micro_batch or ran["micro_batch"],
        dtype=ran["dtype"] if options.dtype == "auto" else options.dtype,
    )


def pin_checkpoint(checkpoint: Path) -> Path:
    """A folder of links to the checkpoint's files, which its deletion leaves alone; else itself.

    Otherwise a watcher slower than the run would lose what it is reading, and over NFS a mapped
    file that is deleted elsewhere kills its reader.
    Raises: FileNotFoundError if it is being deleted already.
    """
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
    except OSError:  # a file system without links
        shutil.rmtree(pinned, ignore_errors=True)
        return checkpoint
    return pinned


def weights_digest(checkpoint: Path) -> str:
    """The sha256 of a checkpoint's weights, by its manifest; UNKNOWN if that is gone or damaged."""
    try:
        return weights_sha256(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN
