"""How many windows go through the network at once: chosen, tried, and halved when memory runs out.

The tokens of a step never depend on it, but floats are added in another order and so the last bits
do. A run therefore keeps the number it began with, which its config.json holds; `auto` chooses anew
only where there is none, or where the number of ranks no longer allows it.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from torch import nn

from model.config import GPTConfig
from model.estimates.memory import largest_micro_batch
from model.precision import autocast
from parallel.collectives import all_gather_object, raise_on_all_ranks
from parallel.ranks import Ranks
from storage.atomic import read_json, write_json
from storage.run_folder import RunFolder, record_start
from train.batch_plan import BatchPlan, largest_power_of_two, share_of
from train.checkpoints.config_changes import Change
from train.config import Config
from train.memory.forecast import device_memory, step_shape
from train.run import Run

# Tokens at once beyond which a CPU step gets no faster: see bench/LOG.md.
FAST_CPU_TOKENS = 1024
NEXT = "next_micro_batch"  # in config.json: what the next start is to take instead
log = logging.getLogger(__name__)


def recorded_micro_batch(folder: RunFolder) -> int | None:
    """What the run in `folder` goes on with; None if none was begun there."""
    if not folder.config.is_file():
        return None
    record = read_json(folder.config)
    return record.get(NEXT, record.get("run", {}).get("micro_batch"))


def smaller_requested(folder: RunFolder) -> bool:
    """Whether the start before left word that this one is to take less."""
    return folder.config.is_file() and NEXT in read_json(folder.config)


def choose_micro_batch(
    config: Config, network: GPTConfig, ranks: Ranks, recorded: int | None
) -> int:
    """What this rank would take; all ranks then take the least.

    Raises: ValueError if `batch_tokens` does not divide, or not even one window fits.
    """
    if config.micro_batch != "auto":
        return config.micro_batch
    share = share_of(config, ranks.world_size)
    if recorded is not None:
        smaller = min(largest_power_of_two(recorded), share & -share)
        return smaller if share % recorded else recorded
    step = step_shape(config, ranks, 1, share)
    largest = largest_micro_batch(network, share, device_memory(ranks), step)
    if ranks.device.type == "cpu":
        largest = min(largest, largest_power_of_two(FAST_CPU_TOKENS // network.context_length))
    return largest


def find_runnable_micro_batch(
    step: nn.Module, plan: BatchPlan, dtype: torch.dtype, ranks: Ranks
) -> BatchPlan:
    """`plan` with the largest micro-batch, halved from its own, that really runs on every rank.

    Each rank tries by itself: no collective is waited for by a rank whose memory ran out.
    Raises: ValueError on every rank if one of them cannot hold a single window.
    """
    found, error = 0, None
    try:
        found = largest_that_runs(
            plan.micro_batch, lambda n: _trial_passes(step, plan, n, dtype, ranks)
        )
    except ValueError as wrong:
        error = wrong
    raise_on_all_ranks(error)
    return replace(plan, micro_batch=min(all_gather_object(found)))


def largest_that_runs(micro_batch: int, attempt: Callable[[int], None]) -> int:
    """`micro_batch` or the first of its halves for which `attempt` has memory enough."""
    while True:
        try:
            attempt(micro_batch)
            return micro_batch
        except torch.OutOfMemoryError as error:
            if micro_batch == 1:
                raise ValueError(too_large(error)) from error
        # Only here are the tensors of the failed attempt gone, with the error that held them.
        log.warning("micro-batch %d does not fit; trying half of it", micro_batch)
        micro_batch = _half(micro_batch)
        torch.cuda.empty_cache()


def _trial_passes(
    step: nn.Module, plan: BatchPlan, micro_batch: int, dtype: torch.dtype, ranks: Ranks
) -> None:
    """Forward and backward twice, as gradients add up, beside what the optimizer and DDP will hold.

    Gradients are dropped.
    """
    weights = sum(p.numel() * p.element_size() for p in step.parameters())
    held = weights * (3 if ranks.world_size > 1 else 2)  # two moments, buckets
    ballast = torch.empty(held, dtype=torch.uint8, device=ranks.device)
    shape = (micro_batch, plan.context_length + 1)
    ids = torch.zeros(shape, dtype=torch.int64, device=ranks.device)
    try:
        for _ in range(2):
            with autocast(dtype, ranks.device):
                loss = step(ids[:, :-1], ids[:, 1:])
            loss.backward()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize(ranks.device)
    finally:
        step.zero_grad(set_to_none=True)
        del ballast


def halve_micro_batch(run: Run, error: torch.OutOfMemoryError) -> None:
    """Halve the micro-batch of a run in progress, whose step begins anew; its windows stay.

    One rank alone goes on at once. Of several, one cannot tell the others while they are in a
    backward pass that waits for it: it leaves word in config.json and ends like any lost rank, and
    the next start, which torchrun makes by itself, takes half.
    Raises: torch.OutOfMemoryError, where there is nothing to halve or other ranks to tell.
    """
    plan = run.plan
    if run.config.micro_batch != "auto":
        raise torch.OutOfMemoryError(
            f"--micro-batch {plan.micro_batch} does not fit ({error}); leave it out or give a "
            "smaller one: the batch stays the same"
        ) from error
    if plan.micro_batch == 1:
        raise torch.OutOfMemoryError(too_large(error)) from error
    half = _half(plan.micro_batch)
    text = f"out of memory in step {run.step}: micro-batch {plan.micro_batch} -> {half}"
    if plan.world_size > 1:
        request_smaller_micro_batch(run.folder, plan)
        raise torch.OutOfMemoryError(f"{text} from the next start on ({error})") from error
    log.warning("%s, the step is done again; a break in bitwise identity, batch the same", text)
    run.plan = replace(plan, micro_batch=half)
    run.eval_options = replace(run.eval_options, micro_batch=half)
    record = read_json(run.folder.config)
    record["config"]["micro_batch"] = record["run"]["micro_batch"] = half
    record["run"]["grad_accum_steps"] = run.plan.grad_accum_steps
    write_json(run.folder.config, record)
    record_start(
        run.folder,
        run.folder.attempt,
        world_size=1,
        micro_batch=half,
        out_of_memory_at_step=run.step,
        changed=[asdict(Change("micro_batch", plan.micro_batch, half))],
    )


def request_smaller_micro_batch(folder: RunFolder, plan: BatchPlan) -> None:
    """Let the next start take half of the plan's micro-batch; ranks that all do so say the same."""
    if plan.micro_batch > 1 and folder.config.is_file():
        with folder.emergency_save_lock():
            write_json(folder.config, read_json(folder.config) | {NEXT: _half(plan.micro_batch)})


def too_large(error: torch.OutOfMemoryError) -> str:
    """What to do when one window is too much."""
    return (
        f"one window at a time does not fit the device's memory ({error}); give --compile on or "
        "--fused-loss on if they are off, a shorter --context-length or a smaller preset, or use a "
        "GPU with more memory"
    )


def _half(micro_batch: int) -> int:
    """Half of it where that is a whole number, which then divides what it divided; else one."""
    return micro_batch // 2 if micro_batch % 2 == 0 else 1
