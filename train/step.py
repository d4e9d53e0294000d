"""One optimizer step: forward and backward over the micro-steps, one reduction, one update."""

from dataclasses import replace

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from parallel.collectives import sum_over_ranks
from parallel.data_parallel import gradient_sync
from train.loader import StepBatch
from train.memory.micro_batch import halve_micro_batch
from train.optimizers.registry import update
from train.progress import DIGEST, LOSS, NORM, SKIPPED, STOP, VALUES, split_digest
from train.run import Run


def train_step(run: Run, batch: StepBatch, lr: float, stop_wanted: bool) -> torch.Tensor:
    """Update the weights once; every rank takes the same decision from the same reduced values.

    No collective follows the update: a rank whose peer dies is before it or after it, never within.
    Returns the step's values on the device, (VALUES,) float64: the loss before the update (mean
    over all target tokens of all ranks), ranks that want to stop, the digest in four 16-bit sums,
    the gradient norm before clipping, and whether the update was skipped.
    """
    values = torch.zeros(VALUES, dtype=torch.float64)
    values[STOP] = float(stop_wanted)
    values[DIGEST] = split_digest(batch.digest)
    values = values.to(run.ranks.device, non_blocking=True)
    while not forward_and_backward(run, batch, values):
        torch.cuda.empty_cache()  # does nothing on the CPU
    values[LOSS] /= run.plan.world_size  # so that the sum over ranks is the mean
    sum_over_ranks(values)
    values[NORM] = clip(run, values)
    values[SKIPPED] = (~is_sound(run, values)).double()
    run.host_copy.before_update(run.step)  # a save that is copying this state comes first
    run.consistent = False  # until it has advanced: a survivor must not save what lies between
    update(run.optimizer, lr, skip=values[SKIPPED].float())
    run.advance()
    return values


def forward_and_backward(run: Run, batch: StepBatch, values: torch.Tensor) -> bool:
    """Gradients and loss of the step; False if memory ran out and less is to be tried at once.

    The failed attempt's tensors are gone only when this has returned. Only one micro-step is queued
    behind the step in flight: should that hang, CUDA would block this thread inside a launch after
    some 1,000 kernels, and nothing would be heard any more. With a single micro-step its kernels
    may be too many by themselves; to wait sooner would leave the device without work.
    Raises: torch.OutOfMemoryError where this rank cannot try again.
    """
    run.optimizer.zero_grad(set_to_none=True)
    values[LOSS] = 0
    # The plan's micro-batch may be smaller by now than the one that the loader dealt.
    dealt = batch.tokens
    batch = replace(batch, tokens=dealt.view(-1, run.plan.micro_batch, dealt.shape[-1]))
    accumulate = len(batch.tokens)
    try:
        for micro in range(accumulate):
            if micro > 0:
                run.progress.wait()
            ids, targets = batch.micro_step(micro)
            with gradient_sync(run.step_model, enabled=micro == accumulate - 1):
                with run.autocast():
                    loss = run.step_model(ids, targets) / accumulate
                loss.backward()
            values[LOSS] += loss.detach()
        run.progress.wait()
    except torch.OutOfMemoryError as error:
        halve_micro_batch(run, error)
        return False
    return True


def is_sound(run: Run, values: torch.Tensor) -> torch.Tensor:
    """Whether the update may be applied: finite, and within the limits if there are any. On device.

    The limits are plain numbers, the same on every rank, from steps that all of them have read.
    """
    sound = torch.isfinite(values[LOSS]) & torch.isfinite(values[NORM])
    if run.config.guard.skip_spikes:
        loss_limit, norm_limit = run.progress.guard.limits(run.step)
        sound &= (values[LOSS] <= loss_limit) & (values[NORM] <= norm_limit)
    return sound


def clip(run: Run, values: torch.Tensor) -> torch.Tensor:
    """Scale the gradient down to the configured norm; returns its norm before."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.config.optimizer.clip is not None:
        clip_grads_with_norm_(parameters, run.config.optimizer.clip, norm)
    return norm.to(values.dtype)
