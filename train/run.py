"""A Run: what belongs to a training run in progress and not to a single step."""

import faulthandler
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from data_prep.order.training_data import TrainingData
from data_prep.tokenizer import Tokenizer
from eval.subject import EvalOptions, Subject
from model.gpt import GPT
from parallel.collectives import set_collective_timeout
from parallel.ranks import Ranks
from parallel.stop_signals import StopRequest
from storage.metrics import MetricLog, Metrics
from storage.ownership.folder_lock import FolderLost
from storage.run_folder import RunFolder, record_start
from train.batch_plan import BatchPlan
from train.checkpoints.background_save import BackgroundSave
from train.checkpoints.checkpoint import CheckpointContents
from train.checkpoints.config_changes import Change
from train.checkpoints.run_position import RunPosition
from train.config import Config
from train.guards.best_validation import best_validation
from train.guards.data_recheck import DataRecheck
from train.guards.stragglers import ComputeTime
from train.loader import Loader
from train.memory.forecast import FIRST_STEPS, Forecast
from train.memory.micro_batch import halved, record_micro_batch, request_smaller_micro_batch
from train.mixture import source_metrics
from train.progress import Progress
from train.step import Learner, StepBatch

_STEPS_TO_A_STOP = 4  # a stop is agreed on in one step and acted on in the next, and steps vary
_SPARE_SECONDS = 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cursor:
    """Where a run is in the training stream after `updates` updates."""

    updates: int
    next_window: int
    """First window of the training stream that no update has taken."""
    windows: int
    """Windows that the updates took: `next_window` less the windows that were left out."""


@dataclass
class Run:
    """A run in progress."""

    config: Config
    steps: int
    """Optimizer steps of the whole run."""
    learner: Learner
    data: TrainingData
    tokenizer: Tokenizer
    folder: RunFolder
    loader: Loader
    progress: Progress
    metrics: MetricLog
    saver: BackgroundSave
    stop: StopRequest
    compute_time: ComputeTime
    forecast: Forecast
    cursor: Cursor
    results: dict[str, Any] = field(default_factory=dict)
    """The last evaluation: its step, metrics and the best one so far, as checkpoints keep them."""
    compared_step: int = -1
    """Step before which the ranks were last compared."""

    def __post_init__(self) -> None:
        self.learner.between_micro_steps = self.progress.wait
        self.learner.before_update = self.saver.host_copy.before_update
        self.learner.smaller_plan = self.smaller_plan

    # --- what the learner and the cursor know ---

    @property
    def ranks(self) -> Ranks:
        """This process among all processes of the job."""
        return self.learner.ranks

    @property
    def recheck(self) -> DataRecheck:
        """What reads the data again beside training."""
        return self.loader.recheck

    @property
    def step(self) -> int:
        """Updates done: the number of the present step."""
        return self.learner.updates

    @property
    def plan(self) -> BatchPlan:
        """How a step is cut into micro-batches now."""
        return self.learner.plan

    @property
    def model(self) -> GPT:
        """The plain network, for evaluation, samples and checkpoints."""
        return self.learner.model

    @property
    def tokens(self) -> int:
        """Target tokens of all steps so far."""
        return self.cursor.windows * self.plan.context_length

    @property
    def is_consistent(self) -> bool:
        """Whether weights, moments and cursor belong to the same number of updates."""
        return self.learner.consistent and self.cursor.updates == self.learner.updates

    # --- what evaluation sees ---

    @property
    def subject(self) -> Subject:
        """The model under evaluation. Long evaluations notice a stop request."""
        ranks = replace(self.ranks, poll_stop=self.poll_stop)
        return Subject(self.model, self.tokenizer, ranks, self.config.mask_documents)

    @property
    def separator(self) -> int | None:
        """The id at which attention and positions begin again; None without --mask-documents."""
        return self.config.separator_of(self.tokenizer.end_of_text)

    @property
    def eval_options(self) -> EvalOptions:
        """How tasks are run."""
        return self.config.eval.options(self.plan.micro_batch, self.config.dtype)

    @property
    def fresh_results(self) -> Metrics:
        """What was evaluated on the present weights."""
        return self.results["metrics"] if self.results.get("step") == self.step else {}

    @property
    def stopped_improving(self) -> bool:
        """Whether `--stop-when-worse` ends the run here. All ranks have the same results."""
        wanted, best = self.config.stop_when_worse, best_validation(self.results)
        return wanted is not None and best is not None and best.worse >= wanted

    # --- metrics ---

    def write_line(self) -> None:
        """Read the step in flight, if there is one, and write its metric line."""
        found = self.progress.read()
        if found is None:
            return
        step, metrics = found
        clock = self.progress.clock
        if clock.timed_steps <= FIRST_STEPS:
            host_copy = self.saver.host_copy.allocated_bytes > 0
            metrics |= self.forecast.compare(clock, self.plan, host_copy)
        metrics |= source_metrics(self.data, self.loader.stream, self.plan, metrics)
        self.metrics.write(step, metrics)
        if clock.timed_steps == 1:
            self._first_step_done()

    def write_last_line(self) -> None:
        """Write what was measured on the last weights, which no step's line has."""
        metrics: Metrics = {"tokens": self.tokens, **self.take_extra()}
        self.metrics.write(self.step, metrics | self.progress.band.compare(self.step, metrics))

    def _first_step_done(self) -> None:
        """From now on a stop saves, and a rank that does not respond is noticed soon."""
        self.stop.nothing_to_save = False
        set_collective_timeout(self.progress.watch.seconds)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Work between two steps: the step in flight is read first, and the clock is paused."""
        self.write_line()
        with self.progress.clock.paused():
            yield

    def take_extra(self) -> Metrics:
        """What else belongs into the present step's line, once."""
        return self.fresh_results | self.saver.take_metrics()

    # --- stopping ---

    def heartbeat(self) -> None:
        """Show that this process makes progress, and ask for a stop if there is a reason.

        Damaged data are one, on the rank that read them. Rank 0 also checks the folder and the
        time limit.
        """
        self.recheck.note(self.step)
        if self.recheck.damage is not None and not self.stop.wanted:
            self.stop.wanted, self.stop.reason = True, "damaged training data"
        if self.ranks.is_main:
            with suppress(FolderLost):
                self.folder.check_now_and_then()
            if self.folder.lost:  # perhaps noticed by the thread that saves
                self.stop.give_up(self.folder.lost)
            steps_ahead = _STEPS_TO_A_STOP * self.progress.clock.step_seconds
            needed = 2 * self.saver.longest_seconds + steps_ahead + _SPARE_SECONDS
            self.stop.check_time_limit(needed)
        self.arm_watchdog(2 * self.progress.watch.seconds + 60)

    def poll_stop(self) -> bool:
        """A heartbeat, then whether this process was asked to stop. For long evaluations."""
        self.heartbeat()
        return self.stop.wanted

    def arm_watchdog(self, seconds: float) -> None:
        """End this process if it waits `seconds` for NCCL, which has no timeout of its own here.

        A later call sets another time, and `close` disarms it.
        """
        if self.ranks.world_size > 1 and self.ranks.device.type == "cuda":
            # Only a C thread can end a process that waits for NCCL outside of a step.
            faulthandler.dump_traceback_later(seconds, exit=True)

    # --- progress and checkpoints ---

    def advance(self, batch: StepBatch) -> None:
        """Move the cursor behind the windows of the step that was just made."""
        taken = self.plan.windows
        windows = self.cursor.windows + taken
        self.cursor = Cursor(self.learner.updates, batch.first_window + taken, windows)

    def smaller_plan(self, plan: BatchPlan, error: torch.OutOfMemoryError) -> BatchPlan:
        """Half the micro-batch, recorded in the run folder, after a step ran out of memory.

        The step is then repeated with the same windows. With several ranks this rank cannot notify
        its peers, which wait for it inside the backward pass: it records the smaller micro-batch
        and fails, and torchrun's restart uses it.
        Raises: torch.OutOfMemoryError if nothing is left to halve, or if there are other ranks.
        """
        smaller = halved(plan, self.config.micro_batch, error)
        text = (
            f"out of memory in step {self.step}: "
            f"micro-batch {plan.micro_batch} -> {smaller.micro_batch}"
        )
        if plan.world_size > 1:
            request_smaller_micro_batch(self.folder, plan)
            raise torch.OutOfMemoryError(f"{text} from the next start on ({error})") from error
        log.warning("%s, the step is repeated; a break in bitwise identity, batch the same", text)
        try:
            record_micro_batch(self.folder, smaller)
        except OSError as full:  # then the next start runs out of memory once more
            log.error("the smaller micro-batch cannot be recorded (%s)", full)
        record_start(
            self.folder,
            self.folder.attempt,
            world_size=1,
            micro_batch=smaller.micro_batch,
            out_of_memory_at_step=self.step,
            changed=[asdict(Change("micro_batch", plan.micro_batch, smaller.micro_batch))],
        )
        return smaller

    def position(self) -> RunPosition:
        """Where the run is, as checkpoints record it."""
        return RunPosition(
            step=self.step,
            next_window=self.cursor.next_window,
            seed=self.config.seed,
            data=self.data.recorded(),
            data_fingerprint=self.data.fingerprint,
            context_length=self.plan.context_length,
            micro_batch=self.plan.micro_batch,
            val_tokens=self.config.eval.validated_tokens,
            lines=[line for line in self.metrics.recent if line["step"] < self.step],
            windows=self.cursor.windows,
            guard=self.progress.guard.history(self.step),
            run_id=self.folder.run_id,
            mask_documents=self.config.mask_documents,
            mixture=[
                start.as_json()
                for start in self.loader.stream.weight_starts
                if start.step < self.step
            ],
        )

    def contents(self, tensors: dict[str, Tensor]) -> CheckpointContents:
        """A checkpoint of the present step, whose state was copied into `tensors`."""
        shape = self.model.config
        lines = replace(self.metrics.digest)  # a copy, since training continues
        return CheckpointContents(
            self.position(), shape, tensors, self.tokenizer, self.results, lines
        )

    def close(self) -> None:
        """End the threads, flush the metrics, release the folder."""
        faulthandler.cancel_dump_traceback_later()
        self.saver.wait()
        self.loader.close()
        self.metrics.close()
        self.folder.unlock()
