"""Evaluates the checkpoints of a live run as they appear, from another GPU or job.

Each is evaluated once, oldest first; the numbers go to `tensorboard/eval/` and `evals.jsonl` of the
run. Rank 0 looks at the folder and decides, the others follow: all ask it again every POLL_SECONDS,
so that none waits for another longer than that.
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
    read_run_config,
    weights_digest,
    with_run_defaults,
)
from parallel.collectives import on_main
from parallel.ranks import Ranks
from parallel.stop_signals import StopWish
from storage.checkpoint_folder import MANIFEST, manifest_mtime
from storage.metrics import Console, MetricLog, Metrics, TensorBoard
from storage.run_folder import RunFolder

POLL_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchRequest:
    """What to watch and what to measure there."""

    run: Path
    tasks: tuple[str, ...]
    """None of them: the run's own, and val_loss."""
    options: EvalOptions
    items_out: Path | None
    """Folder for what became of each item, one folder a checkpoint."""
    idle_minutes: float | None
    """End after so long without a sign of life of the run; None waits for ever."""

    def __post_init__(self) -> None:
        if self.idle_minutes is not None and self.idle_minutes <= 0:
            raise ValueError(f"idle_minutes={self.idle_minutes} is over at once; give more than 0")


@dataclass(frozen=True)
class CheckpointJob:
    """A checkpoint to evaluate. Rank 0 chose it, every rank reads it."""

    step: int
    checkpoint: Path
    folder: Path
    """Where it is read: links to its files, if the disk can hold them."""
    weights: str
    """Their sha256."""
    asked: tuple[str, ...]
    tasks: tuple[str, ...]
    """Those asked that were not measured on it yet."""


@dataclass(frozen=True)
class WatchEnd:
    """The watch is over."""

    reason: str


class Watcher:
    """Finds what is to be evaluated and keeps what was found. Used on rank 0 only."""

    def __init__(self, request: WatchRequest, stop: StopWish) -> None:
        self.request = request
        self.stop = stop
        self.run = RunFolder(request.run)
        self.evaluated = 0
        self._liveness = RunLiveness(self.run, request.idle_minutes)
        self._evals: EvalsFile | None = None
        self._curves: MetricLog | None = None
        self._tasks: tuple[str, ...] = ()
        self._tried: dict[int, int] = {}
        self._expected: set[int] = set()

    def decide(self) -> CheckpointJob | WatchEnd | None:
        """What comes next; None is to wait.

        Raises: ValueError if the folder is no run's, or another process watches the run.
        """
        if self.stop.reason:
            return WatchEnd(self.stop.reason)
        over = self._liveness.poll()  # before the checkpoints are: none comes after its last word
        if self._evals is None and not self._begin():
            return WatchEnd(over) if over else None
        work = self._next()
        return work or (WatchEnd(over) if over else None)

    def _begin(self) -> bool:
        """Open the record once the run has begun; until then its folder stays untouched."""
        run, request = self.run, self.request
        if not run.config.is_file():
            found = [path.name for path in run.path.glob("*")]
            if found and "lock" not in found:
                raise ValueError(
                    f"{run.path} holds {found[0]} but no config.json, so it is no run's folder; "
                    "give one such as runs/gpt2"
                )
            return False
        own = read_run_config(run)["config"]["eval"]["tasks"]
        self._tasks = request.tasks or tuple(dict.fromkeys(["val_loss", *own]))
        check_tasks(self._tasks)
        self._evals = EvalsFile(run.evals, request.options)
        self._unpin_all()  # of what a killed watcher held
        log.info("watching %s for %s", run.path, ", ".join(self._tasks))
        return True

    def _next(self) -> CheckpointJob | None:
        """The oldest checkpoint that something is to be measured of, held against pruning."""
        assert self._evals is not None
        pending = {}
        for checkpoint in reversed(self.run.all_checkpoints()):
            step = int(checkpoint.name.removeprefix("step_"))
            if self._tried.get(step) != manifest_mtime(checkpoint) and self._lacks_tasks(
                step, checkpoint
            ):
                pending[step] = checkpoint
        for step in sorted(self._expected - set(pending) - set(self._tried)):
            log.info("step %d was pruned, skipped", step)
        self._expected = set(pending)
        for step, checkpoint in pending.items():
            self._tried[step] = manifest_mtime(checkpoint)
            try:
                return self._work(step, checkpoint)
            except FileNotFoundError:
                log.info("step %d was pruned, skipped", step)
        return None

    def _lacks_tasks(self, step: int, checkpoint: Path) -> bool:
        """Whether something is to be measured of the checkpoint."""
        assert self._evals is not None
        if self._evals.missing(step, weights_digest(checkpoint), self._tasks):
            return True
        self._tried[step] = manifest_mtime(checkpoint)
        return False

    def _work(self, step: int, checkpoint: Path) -> CheckpointJob:
        """What is to be done with the checkpoint. Raises: FileNotFoundError if it is gone."""
        assert self._evals is not None
        folder = pin_checkpoint(checkpoint)
        weights = weights_digest(folder)
        if self._evals.replaced(step, weights):
            log.info("step %d has other weights than were measured; it is measured again", step)
        tasks = self._evals.missing(step, weights, self._tasks)
        return CheckpointJob(step, checkpoint, folder, weights, self._tasks, tasks)

    def options(self, work: CheckpointJob) -> EvalOptions:
        """The options, those left open filled in with what the run's own evaluations have.

        Raises: ValueError if a file among them is not there.
        """
        return with_run_defaults(read_run_config(self.run), self.request.options, work.asked)

    def loaded(self, work: CheckpointJob, problem: str) -> None:
        """Let the trainer's pruning go on; say so if the checkpoint could not be loaded."""
        self._unpin_all()
        if problem and not (work.checkpoint / MANIFEST).exists():
            log.info("step %d was pruned, skipped", work.step)
        elif problem:
            log.warning("step %d is skipped: %s", work.step, problem)

    def keep(self, work: CheckpointJob, found: dict[str, TaskResult]) -> None:
        """Put what was found on disk: curves and items first, for the record ends the matter."""
        assert self._evals is not None
        tags = {tag: value for result in found.values() for tag, value in result.tags.items()}
        if not tags:
            return
        if self._curves is None:
            steps = read_run_config(self.run)["run"]["steps"]
            curves = FlushedTensorBoard(self.run.eval_tensorboard, purge_step=None)
            self._curves = MetricLog([Console(steps), curves])
        self._curves.write(work.step, {**tags})
        if self.request.items_out is not None:
            for result in found.values():
                result.save_items(self.request.items_out / work.checkpoint.name)
        self._evals.add(work.step, work.weights, found, tags)
        self.evaluated += 1

    def close(self) -> None:
        """Put everything on disk, let others watch this run."""
        if self._curves is not None:
            self._curves.close()
        if self._evals is not None:
            self._unpin_all()
            self._evals.close()

    def _unpin_all(self) -> None:
        for pinned in self.run.checkpoints.glob(f"{PINNED_PREFIX}*"):
            shutil.rmtree(pinned, ignore_errors=True)


class FlushedTensorBoard(TensorBoard):
    """Puts each evaluation on disk at once: hours may pass until the next."""

    def write(self, step: int, metrics: Metrics) -> None:
        """Add every number as a scalar, and flush."""
        super().write(step, metrics)
        self.writer.flush()


def watch(request: WatchRequest, ranks: Ranks) -> str:
    """Evaluate each checkpoint once as it appears, until the run ends; says why it ended.

    Raises: ValueError if the first one shows that what was asked for cannot be had.
    """
    stop = StopWish()
    checked = False
    with stop.listening(), closing(Watcher(request, stop)) as watcher:
        while True:
            move = on_main(watcher.decide, ranks)
            if isinstance(move, WatchEnd):
                count = on_main(lambda: watcher.evaluated, ranks)
                return f"{move.reason}; evaluated {count} checkpoint{'s' * (count != 1)}"
            if move is None:
                time.sleep(POLL_SECONDS)
            else:
                checked |= _evaluate(move, watcher, ranks, check=not checked)


def _evaluate(work: CheckpointJob, watcher: Watcher, ranks: Ranks, check: bool) -> bool:
    """Load, measure, keep; with `check`, what is missing for good is an error. Whether it loaded.

    The model is gone when this returns, before the next one takes its place.
    """
    options = on_main(lambda: watcher.options(work), ranks)  # wrong ones end the watch
    subject, problem = None, ""
    try:
        options = on_main(lambda: with_checkpoint_defaults(work.folder, options), ranks)
        subject = load_subject(work.folder, ranks)
    except ValueError as error:
        problem = str(error)
    on_main(lambda: watcher.loaded(work, problem), ranks)
    if subject is None:
        return False
    if check and set(work.asked) <= set(unavailable_tasks(subject, options, work.asked)):
        raise ValueError(f"none of the tasks {', '.join(work.asked)} could be run; see above")
    found = {}
    for name in work.tasks:
        if on_main(lambda: watcher.stop.reason, ranks):
            break
        result = _measured(subject, options, name, work.step)
        if result.tags:
            found[name] = result
    on_main(lambda: watcher.keep(work, found), ranks)
    return True


def _measured(subject: Subject, options: EvalOptions, name: str, step: int) -> TaskResult:
    """What the task finds; nothing, and a warning, where it fails (alike on every rank)."""
    try:
        return measure(subject, options, [name])
    except ValueError as error:
        log.warning("step %d: %s failed (%s); the watch goes on", step, name, error)
        return TaskResult({})
