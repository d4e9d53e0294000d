"""One optimizer step: forward and backward over the micro-steps, one reduction, one update.

The Learner needs a network, an optimizer and a batch plan, and no run, folder or data set.
Shape letters: W windows of this rank in one step, B windows of a micro-batch, T tokens of a window.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from data_prep.order.permutation import round_keys
from model.dropout import set_random_state
from model.gpt import GPT
from model.precision import autocast
from parallel.data_parallel import fix_bucket_layout
from parallel.ranks import Ranks
from parallel.reduction import Reduction
from train.batch_plan import BatchPlan
from train.optimizers.registry import update

# A step's values: one float64 vector, so that one reduction carries all of them.
LOSS, STOP, DIGEST = 0, 1, slice(2, 6)  # summed over ranks
NORM, SKIPPED = 6, 7  # the same on every rank, filled in after the sum
VALUES = 8
# A 64-bit digest travels as four 16-bit parts: float64 holds their sums exactly.
_SHIFTS = (0, 16, 32, 48)
NO_LIMITS = (float("inf"), float("inf"))


@dataclass(frozen=True)
class StepBatch:
    """One rank's windows of a step."""

    first_window: int
    """First window of the step over all ranks."""
    digest: int
    """Order-free digest of this rank's windows; those of all ranks add up modulo 2**64."""
    windows: Tensor
    """(W, T + 1) on the device: int16 or int32 with the bits of unsigned ids (`as_tensor`)."""

    def micro_batches(self, size: int) -> Tensor:
        """The windows in micro-batches. Shape: (W / size, size, T + 1)."""
        return self.windows.view(-1, size, self.windows.shape[-1])


def as_tensor(windows: np.ndarray) -> Tensor:
    """Windows as a step takes them: the bits of uint16 or uint32 ids, of the same memory."""
    return torch.from_numpy(windows.view(f"i{windows.itemsize}"))


def ids_and_targets(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a micro-batch. Shapes: (B, T + 1) -> twice (B, T) int64."""
    ids = windows.to(torch.int64) & ((1 << 8 * windows.itemsize) - 1)
    return ids[:, :-1], ids[:, 1:]


def split_digest(digest: int) -> Tensor:
    """A 64-bit digest as four 16-bit parts, lowest first. Shape: (4,) float64."""
    return torch.tensor([(digest >> shift) & 0xFFFF for shift in _SHIFTS]).double()


def join_digest(parts: Iterable[Tensor]) -> int:
    """The digest modulo 2**64 from parts that were summed over ranks."""
    return sum(int(part) << shift for part, shift in zip(parts, _SHIFTS, strict=True)) % 2**64


def is_sound(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Whether the update may be applied: loss and norm finite, and within `limits`. On the device.

    The limits are plain numbers, the same on every rank, from steps that all ranks have read.
    Shapes: (VALUES,) -> () bool.
    """
    sound = torch.isfinite(values[LOSS]) & torch.isfinite(values[NORM])
    if limits != NO_LIMITS:
        sound &= (values[LOSS] <= limits[0]) & (values[NORM] <= limits[1])
    return sound


def _nothing(*_: object) -> None:
    """The default of what a run may hook into a step."""


def _give_up(plan: BatchPlan, error: torch.OutOfMemoryError) -> BatchPlan:
    raise error


@dataclass
class Learner:
    """What makes a step. `model` is the plain network; only the step uses `step_model`.

    A run sets the three hooks. Without them a step is complete too.
    """

    ranks: Ranks
    model: GPT
    reduction: Reduction
    """Network and loss in one module, compiled as configured, and how its gradients are summed."""
    optimizer: Optimizer
    plan: BatchPlan
    """How a step is cut into micro-batches. No other copy exists: it shrinks if memory runs out."""
    dtype: torch.dtype
    """Arithmetic of the step's matrix products."""
    clip: float | None = 1.0
    """Scale the gradient down to this norm if it is larger. None disables clipping."""
    seed: int = 0
    """Random seed of what dropout sets to zero."""
    updates: int = 0
    """Updates done, those that were skipped included."""
    consistent: bool = True
    """Whether weights and moments are those after `updates` updates: not inside an update."""
    between_micro_steps: Callable[[], None] = _nothing
    before_update: Callable[[int], None] = _nothing
    """Called with the number of the update that follows."""
    smaller_plan: Callable[[BatchPlan, torch.OutOfMemoryError], BatchPlan] = _give_up
    """The plan to continue with after memory ran out; raises if this process cannot continue."""

    @property
    def step_model(self) -> nn.Module:
        """Network and loss as a step calls them: compiled and wrapped for DDP as configured."""
        return self.reduction.module

    def step(
        self,
        batch: StepBatch,
        lr: float,
        stop_wanted: bool = False,
        limits: tuple[float, float] = NO_LIMITS,
    ) -> Tensor:
        """Update the weights once. Every rank decides the same from the same reduced values.

        Returns the step's values on the device, (VALUES,) float64: the loss before the update
        (mean over all target tokens of all ranks), the number of ranks that want to stop, the
        digest in four 16-bit sums, the gradient norm before clipping, and whether the update was
        skipped. `limits` are the largest loss and norm that are not skipped.
        Raises: torch.OutOfMemoryError where this rank cannot try again with less.
        """
        values = torch.zeros(VALUES, dtype=torch.float64)
        values[STOP] = float(stop_wanted)
        values[DIGEST] = split_digest(batch.digest)
        values = values.to(self.ranks.device, non_blocking=True)
        while not self._forward_and_backward(batch):
            torch.cuda.empty_cache()  # does nothing on the CPU
        self.reduction.finish(values)
        values[NORM] = self.clip_gradient().to(values.dtype)
        values[SKIPPED] = (~is_sound(values, limits)).double()
        # No collective follows: a rank whose peer dies is before the update or after it.
        self.before_update(self.updates)
        self.consistent = False  # an emergency checkpoint must not save a half-made update
        update(self.optimizer, self.updates, lr, skip=values[SKIPPED].float())
        self.updates, self.consistent = self.updates + 1, True
        return values

    def _forward_and_backward(self, batch: StepBatch) -> bool:
        """Gradients and losses of the step; False if memory ran out and `plan` is smaller now.

        The tensors of a failed attempt are freed only when this has returned.
        """
        micro_batches = batch.micro_batches(self.plan.micro_batch)
        divisor = self.reduction.begin(len(micro_batches))
        try:
            for number, windows in enumerate(micro_batches):
                # At most one micro-step is queued behind the step in flight. Should that hang, CUDA
                # would block this thread inside a launch after some 1,000 kernels, and no signal
                # would be handled. Waiting earlier would leave the device without work.
                if number > 0:
                    self.between_micro_steps()
                self._set_random_state(batch, number)
                self._micro_step(windows, number, divisor)
            self.between_micro_steps()
        except torch.OutOfMemoryError as error:
            self.plan = self.smaller_plan(self.plan, error)
            return False
        return True

    def _micro_step(self, windows: Tensor, number: int, divisor: int) -> Tensor:
        """Forward and backward pass of this rank's micro-batch `number`.

        Returns its loss over `divisor`. Shape: (B, T + 1) -> ().
        """
        ids, targets = ids_and_targets(windows)
        with self.reduction.micro_step(number):
            with self.autocast():
                loss = self.step_model(ids, targets) / divisor
            loss.backward()
        self.reduction.add(loss.detach())
        return loss.detach()

    def _set_random_state(self, batch: StepBatch, number: int) -> None:
        """Before this rank's micro-batch `number`: its first window decides what is dropped."""
        if self.model.config.dropout:
            first = batch.first_window + self.plan.windows_of(self.ranks.rank)[number].start
            set_random_state(round_keys(self.seed, first)[1])

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the step's matrix products, as a context."""
        return autocast(self.dtype, self.ranks.device)

    def clip_gradient(self) -> Tensor:
        """Scale the gradient down to norm `clip`; returns its norm before. Shape: ()."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip is not None:
            clip_grads_with_norm_(parameters, self.clip, norm)
        return norm

    def trial_step(self, windows: Tensor) -> Tensor:
        """One micro-step, its reduction, and an update that is skipped; returns the loss.

        Weights and moments stay as they are, bit for bit. Shape: (B, T + 1) -> ().
        """
        divisor = self.reduction.begin(1)
        loss = self._micro_step(windows.to(self.ranks.device), 0, divisor)
        self.reduction.finish(torch.zeros(VALUES, dtype=torch.float64, device=self.ranks.device))
        self.clip_gradient()
        skip = torch.ones((), device=self.ranks.device)
        update(self.optimizer, self.updates, 0.0, skip)
        self.optimizer.zero_grad(set_to_none=True)
        return loss * divisor

    def fix_bucket_layout(self) -> None:
        """Have DDP lay out its gradient buckets for good, before the first step."""
        shape = (self.plan.micro_batch, self.plan.context_length + 1)
        zeros = torch.zeros(shape, dtype=torch.int64, device=self.ranks.device)
        with self.autocast():
            fix_bucket_layout(self.step_model, zeros)
