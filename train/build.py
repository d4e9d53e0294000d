"""Builds a Learner and a Run, once everything has been validated."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from model.checkpoint import load_weights
from model.compilation import compile_module
from model.config import GPTConfig
from model.estimates.flops import peak_flops, training_flops_per_token
from model.fused_loss.head_and_loss import fuses_loss
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import choose_dtype
from parallel.collectives import on_main, together
from parallel.ranks import Ranks
from parallel.reduction import reduction_of
from parallel.shared_errors import SharedError
from parallel.stop_signals import StopRequest, parse_time
from storage.atomic import read_json
from storage.checkpoint_folder import step_of
from storage.ownership.run_identity import RUN_ID, identity_of
from storage.retention import Retention
from storage.run_folder import RunFolder, record_start
from train.batch_plan import BatchPlan
from train.checkpoints.background_save import BackgroundSave
from train.checkpoints.branch import BRANCH_STEPS, lasting_records
from train.checkpoints.checkpoint import load_checkpoint, validation_loss_of
from train.checkpoints.config_changes import (
    BITWISE_SETTINGS,
    OF_ONE_START,
    processors,
    warn_if_not_bitwise_same,
)
from train.checkpoints.host_copy import HostCopy
from train.checkpoints.rate_change import announce_rate
from train.checkpoints.run_facts import run_facts
from train.checkpoints.run_position import RunPosition
from train.checkpoints.state_digest import begin_lines
from train.config import Config
from train.guards.band.watch import band_watch
from train.guards.data_recheck import data_recheck
from train.guards.spikes import ZERO_OUTPUT_STEPS, Guard
from train.guards.stragglers import ComputeTime
from train.loader import Loader
from train.memory.forecast import Forecast, attends_by_flex, compiles, memory_at_first
from train.memory.micro_batch import (
    find_runnable_micro_batch,
    request_smaller_micro_batch,
)
from train.mixture import starts_of_run
from train.optimizers.muon import MuonConfig
from train.optimizers.registry import build_optimizer
from train.preflight.initial_weights import checkpoint_of_init
from train.preflight.inputs import Inputs
from train.preflight.open_sizes import with_sizes
from train.progress import Progress
from train.recovery.metric_logs import load_guard_history, open_metric_log
from train.recovery.run_folder_start import take_folder
from train.reporting.run_settings import run_settings
from train.reporting.start_lines import start_lines
from train.run import Cursor, Run
from train.step import Learner

log = logging.getLogger(__name__)


def new_network(config: Config, shape: GPTConfig, ranks: Ranks) -> tuple[GPT, Optimizer]:
    """The network with its initial weights, from the seed or from `--init`, and its optimizer."""
    model = GPT(shape)
    model.initialise(config.seed)
    if config.init is not None:
        load_weights(checkpoint_of_init(config.init), model, cut_context=True)
    model.to(ranks.device)
    return model, build_optimizer(model, config.optimizer)


def build_learner(
    config: Config,
    network: tuple[GPT, Optimizer],
    plan: BatchPlan,
    ranks: Ranks,
    untried: bool = False,
    separator: int | None = None,
) -> Learner:
    """What makes the steps of `config`: no data set, folder or lock is needed.

    `untried`: only the cost model chose the micro-batch, so on CUDA it is tried first.
    `separator`: the id that opens a document, for --mask-documents.
    Raises: ValueError on every rank if one of them cannot hold a single window.
    """
    model, optimizer = network
    dtype = choose_dtype(config.dtype, ranks.device)
    step_model = _step_model(model, config, ranks, separator)
    # On the CPU nothing can be tried: where memory runs out, the kernel ends the process.
    if untried and ranks.device.type == "cuda":
        cost = config.optimizer.update_cost(model.config, ranks.device.type)
        plan = find_runnable_micro_batch(step_model, plan, dtype, ranks, cost)
    reduction = reduction_of(config.reduction, step_model, ranks, config.gradient_compression)
    clip, seed = config.optimizer.clip, config.seed
    return Learner(ranks, model, reduction, optimizer, plan, dtype, clip, seed)


def build_run(config: Config, ranks: Ranks, inputs: Inputs, stop: StopRequest | None = None) -> Run:
    """A run ready for its next step: a new one, or as its newest sound checkpoint left it.

    Raises: ValueError if another process writes to the folder, or if it holds nothing that this
    run can continue from.
    """
    config = with_sizes(config, inputs.val_tokens, inputs.warmup_steps, inputs.steps)
    stop = stop or StopRequest()
    stop.stop_at = None if config.stop_at is None else parse_time(config.stop_at)
    folder, checkpoint = take_folder(config.out, ranks, inputs.resumable, config.branch)
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
    # A checkpoint replaces the weights of --init, which may be gone by now.
    first = config if checkpoint is None else replace(config, init=None)
    network = new_network(first, inputs.network, ranks)
    cursor, results, position = Cursor(0, 0, 0), {}, None
    if checkpoint is not None:
        position, results = together(partial(_restore, checkpoint, network, inputs))
        cursor = Cursor(position.step, position.next_window, position.windows_taken)
        log.info("resuming from %s: step %d of %d", checkpoint, cursor.updates, inputs.steps)
    separator = config.separator_of(tokenizer.end_of_text)
    learner = build_learner(config, network, inputs.plan, ranks, inputs.untried, separator)
    learner.updates = cursor.updates
    starts = starts_of_run(config, learner.plan, position)
    stream = inputs.data.stream(config.seed, starts)
    saved = cursor.updates if checkpoint is not None else -1
    kept = lasting_records(folder, inputs.steps, config.schedule).get(BRANCH_STEPS, ())
    hours, all_hashed = config.data_recheck_hours, config.data_check == "full"
    recheck = data_recheck(inputs.data, stream, ranks, hours, all_hashed)
    run = Run(
        config=config,
        steps=inputs.steps,
        learner=learner,
        data=inputs.data,
        tokenizer=tokenizer,
        folder=folder,
        loader=Loader(stream, learner.plan, ranks, cursor.next_window, config.skips, recheck),
        progress=_progress(config, learner, inputs, stop),
        metrics=open_metric_log(folder, ranks, inputs.steps, position, config.log),
        saver=BackgroundSave(folder, _retention(config, kept), HostCopy(ranks.device), saved),
        stop=stop,
        compute_time=ComputeTime(learner.step_model, learner.optimizer, ranks),
        forecast=Forecast(config, inputs.network, ranks, at_first),
        cursor=cursor,
        results=results,
    )
    load_guard_history(run.progress.guard, folder, position)
    run.metrics.digest = on_main(partial(begin_lines, network[0], checkpoint))
    _announce(run, inputs)
    if position is not None and ranks.is_main:
        announce_rate(inputs.changes, folder, config, inputs.steps, position)
    _fix_bucket_layout(run)
    return run


def _fix_bucket_layout(run: Run) -> None:
    """Have DDP lay out its buckets, now that the folder can record that memory ran out."""
    try:
        run.learner.fix_bucket_layout()
    except torch.OutOfMemoryError:
        if run.config.micro_batch == "auto":
            request_smaller_micro_batch(run.folder, run.plan)
        raise


def _restore(
    checkpoint: Path, network: tuple[GPT, Optimizer], inputs: Inputs
) -> tuple[RunPosition, dict[str, Any]]:
    """Load weights and optimizer; returns the run's position and its last evaluation."""
    position = load_checkpoint(checkpoint, *network, inputs.data.fingerprint)
    return position, read_json(checkpoint / "results.json")


def _check_steps_left(config: Config, inputs: Inputs, checkpoint: Path | None) -> None:
    """Raises: ValueError on all ranks if the checkpoint is past the run's last step."""
    step = 0 if checkpoint is None else step_of(checkpoint)
    if step > inputs.steps:
        epoch = f"one epoch of batch_tokens={config.batch_tokens} is {inputs.steps} steps"
        asked = f"steps={config.steps}" if config.steps else epoch
        allow = " ".join(sorted({*config.allow, "steps"}))
        raise SharedError(
            f"{checkpoint} is at step {step} but {asked}; to train on, give --steps above {step} "
            f"and --allow {allow}"
        )


def _retention(config: Config, steps: Sequence[int]) -> Retention:
    save = config.save
    return Retention(save.keep, save.keep_every, save.keep_best, validation_loss_of, tuple(steps))


def _step_model(model: GPT, config: Config, ranks: Ranks, separator: int | None) -> nn.Module:
    """Network and loss in one module, compiled if configured."""
    residual = torch.bfloat16 if config.residual == "bfloat16" else None
    fused, recompute = fuses_loss(config.fused_loss, ranks.device), config.recompute == "blocks"
    flex = attends_by_flex(config, model.config, ranks)
    module: nn.Module = NextTokenLoss(model, fused, residual, recompute, separator, flex)
    if compiles(config, ranks.device):
        module = compile_module(module, config.compile == "max", config.deterministic)
    return module


def _progress(config: Config, learner: Learner, inputs: Inputs, stop: StopRequest) -> Progress:
    device = learner.ranks.device
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else ""
    peak = peak_flops(name, learner.dtype)
    flops = training_flops_per_token(inputs.network)
    zero_outputs = inputs.network.initial_weights == "zero_outputs"
    guard = Guard(config.guard, first_step=ZERO_OUTPUT_STEPS if zero_outputs else 0)
    return Progress(learner.plan, inputs.steps, flops, peak, config.hang_seconds, stop, guard)


def _announce(run: Run, inputs: Inputs) -> None:
    """Log the settings of the run, and record them in the run folder."""
    config, plan, ranks = run.config, run.plan, run.ranks
    kinds = processors(ranks)
    settings = run_settings(run, kinds)
    for line in start_lines(run, settings, ", ".join(kinds.values())):
        log.info("%s", line)
    mixed = [names for names in kinds.values() if ", " in names]
    if mixed and isinstance(config.optimizer, MuonConfig):
        log.warning(
            "the ranks compute on %s: Muon's matrix products may differ there in the last bits, "
            "and ranks that differ end the run; use one kind of processor, or --optimizer adamw",
            *mixed,
        )
    record = {
        RUN_ID: run.folder.run_id,
        "config": config.as_json(run.model.config, plan.micro_batch),
        "data_fingerprint": run.data.fingerprint,
        "run": settings,
    }
    run.folder.identity = identity_of(record)
    if not ranks.is_main:
        return
    warn_if_not_bitwise_same(run.folder, settings)
    if of_the_run := [change for change in inputs.changes if change.key not in OF_ONE_START]:
        log.info("changed: %s", "; ".join(map(str, of_the_run)))
    changed = [asdict(change) for change in inputs.changes]
    sizes = {"world_size": plan.world_size, "micro_batch": plan.micro_batch}
    made = {key: settings[key] for key in BITWISE_SETTINGS if key in settings.keys() - sizes}
    record_start(run.folder, run.folder.attempt, **sizes, changed=changed, made=made)
    record |= lasting_records(run.folder, run.steps, config.schedule)
    run.folder.write_config(record)  # the settings of this start replace the recorded ones
    run.metrics.write_settings(run.step, record)
    run.folder.write_status("running", run.step)
    run.progress.band = band_watch(config.guard.band, run_facts(record), run.folder.metrics)
