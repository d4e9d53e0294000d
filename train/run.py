"""A Run: everything that one training run holds, and what its parts do together."""

import faulthandler
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data_prep.dataset.shards import DataSet
from data_prep.tokenizer import Tokenizer
from eval.subject import EvalOptions, Subject
from model.gpt import GPT
from model.precision import autocast
from parallel.collectives import set_collective_timeout
from parallel.ranks import Ranks
from parallel.stop_signals import StopRequest
from storage.metrics import MetricLog, Metrics
from storage.run_folder import RunFolder
from train.batch_plan import BatchPlan
from train.checkpoints.background_save import BackgroundSave
from train.checkpoints.checkpoint import CheckpointContents, RunPosition
from train.checkpoints.host_copy import HostCopy
from train.config import Config
from train.guards.stragglers import ComputeTime
from train.loader import Loader
from train.memory.forecast import Forecast
from train.progress import Progress

STEPS_TO_A_STOP = 4  # a stop is agreed on in one step and acted on in the next, and steps vary
SPARE_SECONDS = 2.0


@dataclass
class Run:
    """A run in progress. `model` is the plain network; only the step uses `step_model`."""

    config: Config
    ranks: Ranks
    plan: BatchPlan
    steps: int
    dtype: torch.dtype
    eval_options: EvalOptions
    data: DataSet
    tokenizer: Tokenizer
    folder: RunFolder
    model: GPT
    step_model: nn.Module
    optimizer: Optimizer
    loader: Loader
    progress: Progress
    metrics: MetricLog
    saver: BackgroundSave
    host_copy: HostCopy
    stop: StopRequest
    compute_time: ComputeTime
    forecast: Forecast
    step: int = 0
    next_window: int = 0
    """First window of the training stream that none of the `step` updates took."""
    windows: int = 0
    """Windows that the updates took."""
    consistent: bool = True
    """Whether weights and moments are those after `step` updates: not so inside an update."""
    results: dict[str, Any] = field(default_factory=dict)
    """The last evaluation: its step and metrics, as kept in checkpoints."""
    checked_step: int = -1
    """Step before which the ranks were last compared."""
    extra: Metrics = field(default_factory=dict)
    """What else goes into the present step's line."""

    @property
    def fresh_results(self) -> Metrics:
        """What was evaluated on the present weights."""
        return self.results["metrics"] if self.results.get("step") == self.step else {}

    @property
    def subject(self) -> Subject:
        """What evaluation sees of this run."""
        ranks = replace(self.ranks, stop_wanted=self.stop_wanted)
        return Subject(self.model, self.tokenizer, ranks)

    @property
    def tokens(self) -> int:
        """Target tokens of all steps so far."""
        return self.windows * self.plan.context_length

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the training step's matrix products."""
        return autocast(self.dtype, self.ranks.device)

    def report(self) -> None:
        """Write the line of the step in flight, if there is one."""
        found = self.progress.read()
        if found is not None:
            step, metrics = found
            metrics |= self.forecast.look(self.progress, self.host_copy.allocated_bytes > 0)
            self.metrics.write(step, metrics)

            if self.progress.timed_steps == 1:
                set_collective_timeout(self.progress.patience)

    def advance(self) -> None:
        """The update is done, or queued: from here on the state is the next step's."""
        self.step, self.next_window, self.consistent = self.step + 1, self.loader.next_window, True
        self.windows += self.plan.windows

    def take_extra(self) -> Metrics:
        """What else there is to say on the present step, once."""
        extra, self.extra = self.fresh_results | self.extra, {}
        return extra

    def stop_wanted(self) -> bool:
        """Whether this rank wants to stop; rank 0 also looks at the clock."""
        if self.ranks.is_main:
            steps_ahead = STEPS_TO_A_STOP * self.progress.step_seconds
            self.stop.check_time_limit(2 * self.saver.longest_seconds + steps_ahead + SPARE_SECONDS)
        self.arm_watchdog(2 * self.progress.patience + 60)
        return self.stop.wanted

    def arm_watchdog(self, seconds: float) -> None:
        """From now on this process may wait so long for NCCL, which knows no limit, then it ends.

        A later call sets another time, `close` takes it back.
        """
        if self.ranks.world_size > 1 and self.ranks.device.type == "cuda":
            # Only a thread of C can end a process that waits for NCCL outside of a step.
            faulthandler.dump_traceback_later(seconds, exit=True)

    def position(self) -> RunPosition:
        """Where the run stands."""
        return RunPosition(
            step=self.step,
            next_window=self.next_window,
            seed=self.config.seed,
            data=str(self.config.data.resolve()),
            data_fingerprint=self.data.fingerprint,
            context_length=self.plan.context_length,
            micro_batch=self.plan.micro_batch,
            val_tokens=self.config.eval.val_tokens,
            lines=[line for line in self.metrics.recent if line["step"] < self.step],
            windows=self.windows,
        )

    def contents(self, tensors: dict[str, Tensor]) -> CheckpointContents:
        """A checkpoint of the present step, whose state was copied into `tensors`."""
        shape = self.model.config
        return CheckpointContents(self.position(), shape, tensors, self.tokenizer, self.results)

    def close(self) -> None:
        """End the threads, put metrics on disk, let others write here."""
        faulthandler.cancel_dump_traceback_later()
        self.saver.wait()
        self.loader.close()
        self.metrics.close()
        self.folder.unlock()
