"""Builds a Run: everything is validated before the first GPU second, then put together once."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from data_prep.order.training_stream import TrainingStream
from model.blocks import attention_backend
from model.checkpoint import load_weights
from model.estimates.flops import peak_flops, training_flops_per_token
from model.fused_loss import fuses_loss
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import choose_dtype
from parallel.collectives import any_rank, broadcast_object, raise_on_all_ranks
from parallel.data_parallel import fix_bucket_layout, replicate
from parallel.ranks import Ranks, is_restart, job_id
from parallel.shared_errors import SharedError
from parallel.stop_signals import StopRequest, moment
from storage.atomic import read_json, write_json
from storage.checkpoint_folder import step_of
from storage.json_lines import truncate_metrics
from storage.metrics import Console, JsonLinesWriter, MetricLog, Metrics, TensorBoard
from storage.retention import Retention
from storage.run_folder import RunFolder, record_start
from train.checkpoints.background_save import BackgroundSave
from train.checkpoints.checkpoint import RunPosition, load_checkpoint, validation_loss_of
from train.checkpoints.config_changes import warn_if_not_bitwise_same
from train.checkpoints.host_copy import HostCopy
from train.config import Config
from train.guards.spikes import Guard, read_history
from train.guards.stragglers import ComputeTime
from train.loader import Loader
from train.memory.forecast import Forecast, compiles, memory_at_first
from train.memory.micro_batch import (
    find_runnable_micro_batch,
    request_smaller_micro_batch,
    smaller_requested,
)
from train.optimizers.registry import build_optimizer
from train.preflight.inputs import Inputs
from train.progress import Progress
from train.recovery.restarts import count_restart
from train.run import Run

log = logging.getLogger(__name__)


def build_run(config: Config, ranks: Ranks, inputs: Inputs, stop: StopRequest | None = None) -> Run:
    """A run ready for its next step: fresh, or as its newest sound checkpoint left it.

    Raises: ValueError if the folder is taken, or holds nothing that this run can go on from.
    """
    stop = stop or StopRequest()
    stop.stop_at = None if config.stop_at is None else moment(config.stop_at)
    folder, checkpoint = _take_folder(config, ranks)
    try:
        _check_steps_left(config, inputs, checkpoint)
        return _assemble(config, ranks, inputs, folder, checkpoint, stop)
    except BaseException:
        folder.unlock()
        raise


def _assemble(
    config: Config,
    ranks: Ranks,
    inputs: Inputs,
    folder: RunFolder,
    checkpoint: Path | None,
    stop: StopRequest,
) -> Run:
    tokenizer = inputs.data.tokenizer()
    at_first = memory_at_first(config, ranks.device)
    dtype = choose_dtype(config.dtype, ranks.device)
    model = GPT(inputs.network)
    model.initialise(config.seed)
    if config.init is not None:
        load_weights(config.init, model)
    model.to(ranks.device)
    optimizer = build_optimizer(model, config.optimizer)
    step, window, windows, results, lines = 0, 0, 0, {}, []
    if checkpoint is not None:
        position, results = _restore(checkpoint, model, optimizer, inputs)
        step, window, lines = position.step, position.next_window, position.lines
        windows = position.windows_taken
        log.info("resuming from %s: step %d of %d", checkpoint, step, inputs.steps)
    stream = TrainingStream(inputs.data.split("train"), config.seed)
    step_model = _step_model(model, config, ranks)
    inputs = _tried(inputs, step_model, dtype, ranks)
    step_model = replicate(step_model, ranks, config.gradient_compression)
    run = Run(
        config=config,
        ranks=ranks,
        plan=inputs.plan,
        steps=inputs.steps,
        dtype=dtype,
        eval_options=inputs.eval_options,
        data=inputs.data,
        tokenizer=tokenizer,
        folder=folder,
        model=model,
        step_model=step_model,
        optimizer=optimizer,
        loader=Loader(stream, inputs.plan, ranks, window, config.skips),
        progress=_progress(config, ranks, inputs, stop),
        metrics=_metric_log(folder, ranks, inputs.steps, step, lines),
        saver=BackgroundSave(folder, _retention(config), step if checkpoint is not None else -1),
        host_copy=HostCopy(ranks.device),
        stop=stop,
        compute_time=ComputeTime(step_model, optimizer, ranks),
        forecast=Forecast(config, inputs.network, inputs.plan, ranks, at_first),
        step=step,
        next_window=window,
        windows=windows,
        results=results,
    )
    history = read_history(folder.metrics, step, config.guard.window)
    run.progress.guard.load_history(broadcast_object(history))
    _announce(run, inputs)
    _settle(run)
    return run


def _tried(inputs: Inputs, step: nn.Module, dtype: torch.dtype, ranks: Ranks) -> Inputs:
    """`inputs` with a micro-batch that was found to fit, where the cost model alone chose it.

    Not on the CPU: there memory does not run out, the kernel ends the process.
    """
    if not inputs.untried or ranks.device.type != "cuda":
        return inputs
    plan = find_runnable_micro_batch(step, inputs.plan, dtype, ranks)
    options = replace(inputs.eval_options, micro_batch=plan.micro_batch)
    return replace(inputs, plan=plan, eval_options=options)


def _settle(run: Run) -> None:
    """Have DDP lay out its buckets. Raises: torch.OutOfMemoryError, heeded by the next start."""
    shape = (run.plan.micro_batch, run.plan.context_length + 1)
    zeros = torch.zeros(shape, dtype=torch.int64, device=run.ranks.device)
    try:
        with run.autocast():
            fix_bucket_layout(run.step_model, zeros)
    except torch.OutOfMemoryError:
        if run.config.micro_batch == "auto":
            request_smaller_micro_batch(run.folder, run.plan)
        raise


def _restore(
    checkpoint: Path, model: GPT, optimizer: Optimizer, inputs: Inputs
) -> tuple[RunPosition, dict[str, Any]]:
    """Load the checkpoint on every rank, or raise on every rank."""
    found, error = None, None
    try:
        position = load_checkpoint(checkpoint, model, optimizer, inputs.data.fingerprint)
        found = position, read_json(checkpoint / "results.json")
    except (ValueError, OSError) as wrong:
        error = wrong
    raise_on_all_ranks(error)
    assert found is not None
    return found


def _take_folder(config: Config, ranks: Ranks) -> tuple[RunFolder, Path | None]:
    """Rank 0 locks the folder and finds the checkpoint to go on from; all ranks learn it."""
    folder, checkpoint, error = RunFolder(config.out), None, None
    again = any_rank(is_restart(), ranks.device)  # each machine's torchrun counts for itself
    if ranks.is_main:
        try:
            folder.lock(job_id())
            folder.remove_unfinished()
            checkpoint = folder.recover_newest_checkpoint()
            word = smaller_requested(folder)
            folder.attempt = count_restart(folder, _step_of(checkpoint), again, halves=word)
        except (ValueError, OSError) as found:
            error = found
            folder.unlock()
        except BaseException:
            folder.unlock()
            raise
    raise_on_all_ranks(error)
    checkpoint, folder.attempt = broadcast_object((checkpoint, folder.attempt))
    return folder, checkpoint


def _check_steps_left(config: Config, inputs: Inputs, checkpoint: Path | None) -> None:
    """Raises: ValueError, alike on all ranks, if the checkpoint is past the run's last step."""
    step = _step_of(checkpoint)
    if step > inputs.steps:
        epoch = f"one epoch of batch_tokens={config.batch_tokens} is {inputs.steps} steps"
        asked = f"steps={config.steps}" if config.steps else epoch
        allow = " ".join(sorted({*config.allow, "steps"}))
        raise SharedError(
            f"{checkpoint} is at step {step} but {asked}; to train on, give --steps above {step} "
            f"and --allow {allow}"
        )


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else step_of(checkpoint)


def _retention(config: Config) -> Retention:
    save = config.save
    return Retention(save.keep, save.keep_every, save.keep_best, validation_loss_of)


def _step_model(model: GPT, config: Config, ranks: Ranks) -> nn.Module:
    """Network and loss in one, compiled or not."""
    residual = torch.bfloat16 if config.residual == "bfloat16" else None
    module: nn.Module = NextTokenLoss(model, fuses_loss(config.fused_loss, ranks.device), residual)
    if compiles(config, ranks.device):
        module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return module


def _progress(config: Config, ranks: Ranks, inputs: Inputs, stop: StopRequest) -> Progress:
    on_cuda = ranks.device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(ranks.device)) if on_cuda else None
    flops = training_flops_per_token(inputs.network)
    guard = Guard(config.guard)
    return Progress(inputs.plan, inputs.steps, flops, peak, config.hang_seconds, stop, guard)


def _metric_log(
    folder: RunFolder, ranks: Ranks, steps: int, step: int, lines: list[dict[str, Any]]
) -> MetricLog:
    """Writers on rank 0 only; lines and events of steps that will be done again are taken back.

    `lines` are the last ones before `step`: those that a killed rank 0 did not write come now.
    """
    if not ranks.is_main:
        return MetricLog([])
    written = truncate_metrics(folder.metrics, folder.discarded_metrics, step)
    purge = step if step or folder.tensorboard.exists() else None
    found = MetricLog(
        [Console(steps), JsonLinesWriter(folder.metrics), TensorBoard(folder.tensorboard, purge)]
    )
    for line in lines:
        if line["step"] > written:
            found.write(line["step"], {k: v for k, v in line.items() if k != "step"})
    return found


def _announce(run: Run, inputs: Inputs) -> None:
    """Say what will run, and record it."""
    config, plan, ranks = run.config, run.plan, run.ranks
    backend = attention_backend(run.model.config, ranks.device, run.dtype)
    settings: Metrics = {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "steps": run.steps,
        "batch_tokens": plan.tokens,
        "world_size": plan.world_size,
        "micro_batch": plan.micro_batch,
        "grad_accum_steps": plan.grad_accum_steps,
        "context_length": plan.context_length,
        "device": str(ranks.device.type),
        "dtype": str(run.dtype).removeprefix("torch."),
        "attention": backend,
        "compiled": str(compiles(config, ranks.device)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    log.info("%s", "  ".join(f"{key} {value}" for key, value in settings.items()))
    if not ranks.is_main:
        return
    record = {
        "config": config.as_json(run.model.config, plan.micro_batch),
        "data_fingerprint": run.data.fingerprint,
        "run": settings,
    }
    warn_if_not_bitwise_same(run.folder, settings)
    if inputs.changes:
        log.info("changed: %s", "; ".join(map(str, inputs.changes)))
    changed = [asdict(change) for change in inputs.changes]
    sizes = {"world_size": plan.world_size, "micro_batch": plan.micro_batch}
    record_start(run.folder, run.folder.attempt, **sizes, changed=changed)
    write_json(run.folder.config, record)  # what may change between starts is what runs now
    run.metrics.write_text(run.step, "config", json.dumps(record, indent=2))
    run.folder.write_status("running", run.step)
