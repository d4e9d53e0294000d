"""Evaluates each checkpoint of a running training job as it appears, in another process.

Checkpoints are evaluated once each, oldest first. The numbers go to the run's `tensorboard/eval/`
and `evals.jsonl`. Rank 0 reads the run folder and decides what comes next. All ranks ask it again
every _POLL_SECONDS, so no rank waits in a collective for much longer than that.
"""

import logging
import shutil
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from eval.result import TaskResult
from eval.subject import EvalOptions, Subject, load_subject, with_checkpoint_defaults
from eval.tasks.registry import check_tasks, measure, unavailable_tasks
from eval.watching.evals_file import EvalsFile
from eval.watching.live_run import (
    PINNED_PREFIX,
    RunLiveness,
    pin_checkpoint,
    weights_digest,
    with_run_defaults,
)
from parallel.collectives import on_main
from parallel.ranks import Ranks
from parallel.stop_signals import StopRequest
from storage.checkpoint_folder import MANIFEST, manifest_mtime, step_of
from storage.event_files import TensorBoard
from storage.metrics import MetricLog
from storage.ownership.run_identity import identity_of
from storage.run_folder import RunFolder
from storage.writers.console import Console

_POLL_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchRequest:
    """Which run to watch, and what to measure on its checkpoints."""

    run: Path
    tasks: tuple[str, ...]
    """Names of tasks. If empty: val_loss and the tasks in the run's config.json."""
    options: EvalOptions
    items_out: Path | None
    """Folder for per-item results; it gets one sub-folder per checkpoint."""
    idle_minutes: float | None
    """End the watch after this many minutes without a change in the run folder; None: no limit."""

    def __post_init__(self) -> None:
        if self.idle_minutes is not None and self.idle_minutes <= 0:
            raise ValueError(
                f"idle_minutes={self.idle_minutes} ends the watch at once; give more than 0"
            )


@dataclass(frozen=True)
class _CheckpointJob:
    """A checkpoint to evaluate. Rank 0 chooses it, every rank reads it."""

    step: int
    checkpoint: Path
    folder: Path
    """The folder to read: hard links to the checkpoint's files, or the checkpoint itself."""
    weights: str
    """sha256 of the weights."""
    requested: tuple[str, ...]
    """All tasks of the watch."""
    tasks: tuple[str, ...]
    """The requested tasks that were not yet measured on these weights."""


@dataclass(frozen=True)
class _WatchEnd:
    """The decision to end the watch, and its reason."""

    reason: str


class _Watcher:
    """Chooses the next checkpoint and saves the results. Used on rank 0 only."""

    def __init__(self, request: WatchRequest, stop: StopRequest) -> None:
        self.request = request
        self.stop = stop
        self.run = RunFolder(request.run)
        self.evaluated = 0
        self._liveness = RunLiveness(self.run, request.idle_minutes)
        self._evals: EvalsFile | None = None
        self._curves: MetricLog | None = None
        self._tasks: tuple[str, ...] = ()
        self._tried: dict[int, int] = {}
        """Checkpoints that need no other look: the modification time of the manifest, by step."""
        self._expected: set[int] = set()
        """Steps that were pending at the last poll: if one is gone at the next, it was pruned."""

    def decide(self) -> _CheckpointJob | _WatchEnd | None:
        """The next checkpoint to evaluate, or the end of the watch; None: wait and ask again.

        Raises: ValueError if the folder is not a run's, or another process watches the run.
        """
        if self.stop.wanted:
            return _WatchEnd(f"{self.stop.reason} received")
        # Poll before listing the checkpoints: a run writes none after its final status.
        over = self._liveness.poll()
        if self._evals is not None:
            self._evals.retry()
        if self._evals is None and not self._open_run():
            return _WatchEnd(over) if over else None
        job = self._next_job()
        return job or (_WatchEnd(over) if over else None)

    def _open_run(self) -> bool:
        """Open evals.jsonl once the run has started; False, and nothing is written, before that."""
        run, request = self.run, self.request
        if not run.config.is_file():
            found = [path.name for path in run.path.glob("*")]
            if found and "lock" not in found:
                raise ValueError(
                    f"{run.path} holds {found[0]} but no config.json, so it is not a run's folder; "
                    "give one such as runs/gpt2"
                )
            return False
        record = run.read_config()
        run.identity = identity_of(record)  # so that another run's checkpoints do not count
        own = record["config"]["eval"]["tasks"]
        self._tasks = request.tasks or tuple(dict.fromkeys(["val_loss", *own]))
        check_tasks(self._tasks)
        self._evals = EvalsFile(run.evals, request.options)
        self._unpin_all()  # links left by a watcher that was killed
        log.info("watching %s for %s", run.path, ", ".join(self._tasks))
        return True

    def _next_job(self) -> _CheckpointJob | None:
        """The oldest checkpoint with tasks left to measure, pinned; None if there is none."""
        pending = self._find_pending()
        for step in sorted(self._expected - set(pending) - set(self._tried)):
            log.info("step %d was pruned, skipped", step)
        self._expected = set(pending)
        for step, checkpoint in pending.items():
            self._tried[step] = manifest_mtime(checkpoint)
            try:
                return self._pin(step, checkpoint)
            except FileNotFoundError:
                log.info("step %d was pruned, skipped", step)
        return None

    def _find_pending(self) -> dict[int, Path]:
        """Checkpoints with tasks left to measure, oldest first, by step."""
        assert self._evals is not None
        pending = {}
        for checkpoint in reversed(self.run.all_checkpoints()):
            step, mtime = step_of(checkpoint), manifest_mtime(checkpoint)
            if self._tried.get(step) == mtime:
                continue
            if self._evals.not_measured(step, weights_digest(checkpoint), self._tasks):
                pending[step] = checkpoint
            else:
                self._tried[step] = mtime
        return pending

    def _pin(self, step: int, checkpoint: Path) -> _CheckpointJob:
        """Pin the checkpoint and list its tasks. Raises: FileNotFoundError if it was deleted."""
        assert self._evals is not None
        folder = pin_checkpoint(checkpoint)
        weights = weights_digest(folder)
        if self._evals.has_other_weights(step, weights):
            log.info("step %d has other weights than were measured; it is measured again", step)
        tasks = self._evals.not_measured(step, weights, self._tasks)
        return _CheckpointJob(step, checkpoint, folder, weights, self._tasks, tasks)

    def options(self, job: _CheckpointJob) -> EvalOptions:
        """The requested options; those not given are taken from the run's config.json.

        Raises: ValueError if one of their files does not exist.
        """
        return with_run_defaults(self.run.read_config(), self.request.options, job.requested)

    def after_load(self, job: _CheckpointJob, problem: str) -> None:
        """Delete the links, so that pruning frees the disk; log why loading failed, if it did."""
        self._unpin_all()
        if problem and not (job.checkpoint / MANIFEST).exists():
            log.info("step %d was pruned, skipped", job.step)
        elif problem:
            log.warning("step %d is skipped: %s", job.step, problem)

    def save(self, job: _CheckpointJob, found: dict[str, TaskResult]) -> None:
        """Write the results of the tasks to disk."""
        assert self._evals is not None
        tags = {tag: value for result in found.values() for tag, value in result.tags.items()}
        if not tags:
            return
        if self._curves is None:
            steps = self.run.read_config()["run"]["steps"]
            curves = TensorBoard(self.run.eval_tensorboard, purge_step=None)
            self._curves = MetricLog([Console(steps), curves])
        self._curves.write(job.step, {**tags})
        try:
            self._save_items(job, found)
        except OSError as error:
            log.error(
                "step %d: the results of its items cannot be written (%s), so a later watch "
                "measures it again",
                *(job.step, error),
            )
            return
        # Last: once a line is in evals.jsonl, a later watch measures nothing of it again.
        self._evals.add(job.step, job.weights, found, tags)
        self.evaluated += 1

    def _save_items(self, job: _CheckpointJob, found: dict[str, TaskResult]) -> None:
        if self.request.items_out is not None:
            for result in found.values():
                result.save_items(self.request.items_out / job.checkpoint.name)

    def close(self) -> None:
        """Flush and close the files; another process may watch this run afterwards."""
        if self._curves is not None:
            self._curves.close()
        if self._evals is not None:
            self._unpin_all()
            self._evals.close()

    def _unpin_all(self) -> None:
        for pinned in self.run.checkpoints.glob(f"{PINNED_PREFIX}*"):
            shutil.rmtree(pinned, ignore_errors=True)


def watch(request: WatchRequest, ranks: Ranks) -> str:
    """Evaluate each checkpoint once as it appears. Returns why the watch ended.

    Raises: ValueError if none of the tasks can run on the first checkpoint.
    """
    stop = StopRequest("ending after the task in flight", nothing_to_save=False)
    checked = False
    with stop.listening(), closing(_Watcher(request, stop)) as watcher:
        while True:
            decision = on_main(watcher.decide)
            if isinstance(decision, _WatchEnd):
                count = on_main(lambda: watcher.evaluated)
                return f"{decision.reason}; evaluated {count} checkpoint{'s' * (count != 1)}"
            if decision is None:
                time.sleep(_POLL_SECONDS)
            else:
                checked |= _evaluate(decision, watcher, ranks, check=not checked)


def _evaluate(job: _CheckpointJob, watcher: _Watcher, ranks: Ranks, check: bool) -> bool:
    """Load a checkpoint, run its tasks and save the results. Returns whether it could be loaded.

    With `check`, raises ValueError if the data of every task is unavailable. The model is freed
    when this returns, before the next one is loaded.
    """
    options = on_main(lambda: watcher.options(job))  # an error here ends the watch
    subject, problem = None, ""
    try:
        options = on_main(lambda: with_checkpoint_defaults(job.folder, options))
        subject = load_subject(job.folder, ranks)
    except ValueError as error:
        problem = str(error)
    on_main(lambda: watcher.after_load(job, problem))
    if subject is None:
        return False
    if check and set(job.requested) <= set(unavailable_tasks(subject, options, job.requested)):
        raise ValueError(f"none of the tasks {', '.join(job.requested)} could be run; see above")
    found = {}
    for name in job.tasks:
        if on_main(lambda: watcher.stop.wanted):
            break
        result = _measure(subject, options, name, job.step)
        if result.tags:
            found[name] = result
    on_main(lambda: watcher.save(job, found))
    return True


def _measure(subject: Subject, options: EvalOptions, name: str, step: int) -> TaskResult:
    """The result of one task; if it fails (on every rank alike), a warning and an empty result."""
    try:
        found = measure(subject, options, [name])
    except ValueError as error:  # its data
        found = TaskResult({}, failures={name: str(error)})
    for error in found.failures.values():
        log.warning("step %d: %s failed (%s); the watch continues", step, name, error)
    return found
