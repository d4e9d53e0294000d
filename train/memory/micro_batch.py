"""Chooses the micro-batch, tries it, and halves it when memory runs out.

The micro-batch is the number of windows in one forward pass. It never changes which tokens form a
step, but the order in which floats are added, and so the last bits. A run therefore keeps the
number that its config.json records. `auto` chooses again only if none is recorded, or if the number
of ranks no longer allows it.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from model.config import GPTConfig
from model.estimates.largest_micro_batch import fast_windows, largest_micro_batch
from model.estimates.reduction_memory import exchange_bytes, sums_apart
from model.estimates.updates import UpdateCost
from model.precision import autocast
from parallel.collectives import all_gather_object, together
from parallel.ranks import Ranks
from storage.run_folder import RunFolder
from train.batch_plan import BatchPlan, largest_power_of_two, share_of
from train.config import Config
from train.memory.forecast import device_memory, step_shape

_TREE_RANKS = 8  # a new run with --reduction tree has the same micro-batch on 1, 2, 4 and 8
_NEXT = "next_micro_batch"  # key in config.json: what the next start takes instead
log = logging.getLogger(__name__)


def recorded_micro_batch(folder: RunFolder) -> int | None:
    """The micro-batch with which the run in `folder` continues; None if no run is there."""
    if not folder.config.is_file():
        return None
    record = folder.read_config()
    return record.get(_NEXT, record["run"]["micro_batch"])


def smaller_requested(folder: RunFolder) -> bool:
    """Whether the previous start ran out of memory and requested a smaller one."""
    return folder.config.is_file() and _NEXT in folder.read_config()


def choose_micro_batch(
    config: Config, network: GPTConfig, ranks: Ranks, recorded: int | None
) -> int:
    """The micro-batch that this rank would take. All ranks then take the smallest of theirs.

    Raises: ValueError if `batch_tokens` does not divide, or not even one window fits.
    """
    if config.micro_batch != "auto":
        return config.micro_batch
    share = share_of(config, ranks.world_size)
    if config.reduction == "tree":
        return _choose_for_tree(config, network, ranks, recorded, share * ranks.world_size)
    if recorded is not None:
        smaller = min(largest_power_of_two(recorded), share & -share)
        return smaller if share % recorded else recorded
    step = step_shape(config, network, ranks, 1, share)
    return _fast(largest_micro_batch(network, share, device_memory(ranks), step), network, ranks)


def _choose_for_tree(
    config: Config, network: GPTConfig, ranks: Ranks, recorded: int | None, windows: int
) -> int:
    """It decides the bits: never changed by itself, and the same on 1 to 8 ranks if memory is."""
    if recorded is not None:
        return recorded
    share = windows // max(ranks.world_size, min(_TREE_RANKS, windows & -windows))
    step = replace(step_shape(config, network, ranks, 1, share), world_size=_TREE_RANKS)
    memory = device_memory(ranks)
    return _fast(largest_micro_batch(network, share, memory, step, windows), network, ranks)


def _fast(micro_batch: int, network: GPTConfig, ranks: Ranks) -> int:
    """The micro-batch, or what is as fast on this kind of device."""
    return min(micro_batch, fast_windows(network.context_length, ranks.device.type))


def find_runnable_micro_batch(
    step: nn.Module, plan: BatchPlan, dtype: torch.dtype, ranks: Ranks, update: UpdateCost
) -> BatchPlan:
    """`plan` with the largest micro-batch, halved from its own, that really runs on every rank.

    `update`: what the optimizer needs, most of which exists only after the first step. Each rank
    tries on its own: no rank waits in a collective for one whose memory ran out.
    Raises: ValueError on every rank if one of them cannot hold a single window.
    """
    found = together(
        lambda: largest_that_runs(
            plan.micro_batch, lambda n: _trial_passes(step, plan, n, dtype, ranks, update)
        )
    )
    return replace(plan, micro_batch=min(all_gather_object(found)))


def largest_that_runs(micro_batch: int, attempt: Callable[[int], None]) -> int:
    """`micro_batch`, or the first of its halves for which `attempt` does not run out of memory."""
    while True:
        try:
            attempt(micro_batch)
            return micro_batch
        except torch.OutOfMemoryError as error:
            if micro_batch == 1:
                raise ValueError(_too_large(error)) from error
        # The error holds the tensors of the failed attempt: they are freed only here.
        log.warning("micro-batch %d does not fit; trying half of it", micro_batch)
        micro_batch = _half(micro_batch)
        torch.cuda.empty_cache()


def _trial_passes(
    step: nn.Module,
    plan: BatchPlan,
    micro_batch: int,
    dtype: torch.dtype,
    ranks: Ranks,
    update: UpdateCost,
) -> None:
    """Two forward and backward passes, and the memory of optimizer, reduction and update.

    Two, because the second pass adds to existing gradients. The gradients are dropped.
    """
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    kept = update.state_bytes + _summing_bytes(weights, plan, micro_batch)
    ballast = torch.empty(kept, dtype=torch.uint8, device=ranks.device)
    shape = (micro_batch, plan.context_length + 1)
    ids = torch.zeros(shape, dtype=torch.int64, device=ranks.device)
    try:
        for _ in range(2):
            with autocast(dtype, ranks.device):
                loss = step(ids[:, :-1], ids[:, 1:])
            loss.backward()
        torch.empty(update.scratch_bytes, dtype=torch.uint8, device=ranks.device)
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
    finally:
        step.zero_grad(set_to_none=True)
        del ballast


def _summing_bytes(gradients: int, plan: BatchPlan, micro_batch: int) -> int:
    """Bytes for sums over micro-batches and ranks; of a tree, as many as on any number of ranks."""
    if not plan.blocks:
        return exchange_bytes(gradients, plan.world_size, "ddp")
    apart = gradients * sums_apart(plan.windows // micro_batch)
    return apart + exchange_bytes(gradients, _TREE_RANKS, "tree")


def halved(plan: BatchPlan, wanted: int | str, error: torch.OutOfMemoryError) -> BatchPlan:
    """`plan` with half its micro-batch, after memory ran out; `wanted` is the run's setting.

    Raises: torch.OutOfMemoryError with the cure if the number was given by the user, or is 1.
    """
    if plan.blocks and plan.micro_batch > 1:
        raise torch.OutOfMemoryError(
            f"micro-batch {plan.micro_batch} does not fit ({error}), and --reduction tree never "
            f"changes it by itself: give --micro-batch {_half(plan.micro_batch)}, with which the "
            "run continues on the same batch but no longer with the same bits"
        ) from error
    if wanted != "auto":
        raise torch.OutOfMemoryError(
            f"--micro-batch {plan.micro_batch} does not fit ({error}); leave it out or give a "
            "smaller one: the batch stays the same"
        ) from error
    if plan.micro_batch == 1:
        raise torch.OutOfMemoryError(_too_large(error)) from error
    return replace(plan, micro_batch=_half(plan.micro_batch))


def record_micro_batch(folder: RunFolder, plan: BatchPlan) -> None:
    """Write to config.json the micro-batch that the run has from now on."""
    record = folder.read_config()
    record["config"]["micro_batch"] = record["run"]["micro_batch"] = plan.micro_batch
    record["run"]["grad_accum_steps"] = plan.grad_accum_steps
    folder.write_config(record)


def request_smaller_micro_batch(folder: RunFolder, plan: BatchPlan) -> None:
    """Record in config.json that the next start is to take half of the plan's micro-batch.

    Several ranks may do so; all of them write the same.
    """
    if plan.micro_batch > 1 and folder.config.is_file():
        with folder.emergency_save_lock():
            folder.write_config(folder.read_config() | {_NEXT: _half(plan.micro_batch)})


def _too_large(error: torch.OutOfMemoryError) -> str:
    """The error sentence for a device that cannot hold one window."""
    return (
        f"one window at a time does not fit the device's memory ({error}); give --recompute "
        "blocks, --compile on or --fused-loss on if they are off, a shorter --context-length or a "
        "smaller preset, or use a GPU with more memory"
    )


def _half(micro_batch: int) -> int:
    """Half of an even number, which divides whatever the number divides; otherwise 1."""
    return micro_batch // 2 if micro_batch % 2 == 0 else 1
