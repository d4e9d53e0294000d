"""Builds a Run: everything is validated before the first GPU second, then put together once."""

import json
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from data_prep.order import TrainingStream
from data_prep.shards import DataSet
from data_prep.tokenizer import Tokenizer
from eval.subject import EvalOptions, Subject
from model.attention import attention_backend
from model.checkpoint import load_weights
from model.cost import peak_flops, training_flops_per_token
from model.gpt import GPT
from model.loss import NextTokenLoss
from model.precision import autocast, choose_dtype
from parallel.data_parallel import replicate, settle_buckets
from parallel.ranks import Ranks, from_main, raise_together
from storage.atomic import read_json, write_json
from storage.metrics import Console, JsonLines, MetricLog, Metrics, TensorBoard
from storage.run_folder import RunFolder, cut_lines
from train.config import BatchPlan, Config
from train.inputs import Inputs
from train.loader import Loader
from train.optimizers import build_optimizer
from train.preemption import StopSignal
from train.progress import Progress
from train.resume import Position, load_checkpoint

log = logging.getLogger(__name__)


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
    step: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    """The last evaluation: its step and metrics, as kept in checkpoints."""
    stop: StopSignal = field(default_factory=StopSignal)
    saved_step: int = -1
    """Step of the newest checkpoint."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the newest checkpoint (or this process) was made, by the monotonic clock."""

    @property
    def fresh_results(self) -> Metrics:
        """What was evaluated on the present weights."""
        return self.results["metrics"] if self.results.get("step") == self.step else {}

    @property
    def subject(self) -> Subject:
        """What evaluation sees of this run."""
        return Subject(self.model, self.tokenizer, self.ranks)

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the training step's matrix products."""
        return autocast(self.dtype, self.ranks.device)

    def report(self) -> None:
        """Write the line of the step in flight, if there is one."""
        found = self.progress.read()
        if found is not None:
            self.metrics.write(*found)

    def close(self) -> None:
        """End the reading thread, put metrics on disk, let others write here."""
        self.loader.close()
        self.metrics.close()
        self.folder.unlock()


def build_run(config: Config, ranks: Ranks, inputs: Inputs) -> Run:
    """A run ready for its next step: fresh, or as its newest sound checkpoint left it.

    Raises: ValueError if the folder is taken, or holds nothing that this run can go on from.
    """
    folder, checkpoint = _take_folder(config, ranks)
    try:
        return _assemble(config, ranks, inputs, folder, checkpoint)
    except BaseException:
        folder.unlock()
        raise


def _assemble(
    config: Config, ranks: Ranks, inputs: Inputs, folder: RunFolder, checkpoint: Path | None
) -> Run:
    tokenizer = inputs.data.tokenizer()
    dtype = choose_dtype(config.dtype, ranks.device)
    model = GPT(inputs.network)
    model.initialise(config.seed)
    if config.init is not None:
        load_weights(config.init, model)
    model.to(ranks.device)
    optimizer = build_optimizer(model, config.optimizer)
    step, window, results = 0, 0, {}
    if checkpoint is not None:
        position, results = _restore(checkpoint, model, optimizer, inputs)
        step, window = position.step, position.next_window
        log.info("resuming from %s: step %d of %d", checkpoint, step, inputs.steps)
    stream = TrainingStream(inputs.data.split("train"), config.seed)
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
        step_model=_step_model(model, config, ranks),
        optimizer=optimizer,
        loader=Loader(stream, inputs.plan, ranks, window),
        progress=_progress(config, ranks, inputs),
        metrics=_metric_log(folder, ranks, inputs.steps, step),
        step=step,
        results=results,
        saved_step=step if checkpoint is not None else -1,
    )
    _announce(run)
    with run.autocast():
        shape = (inputs.plan.micro_batch, inputs.plan.context_length)
        settle_buckets(run.step_model, torch.zeros(shape, dtype=torch.int64, device=ranks.device))
    return run


def _restore(
    checkpoint: Path, model: GPT, optimizer: Optimizer, inputs: Inputs
) -> tuple[Position, dict[str, Any]]:
    """Load the checkpoint on every rank, or raise on every rank."""
    found, error = None, None
    try:
        position = load_checkpoint(checkpoint, model, optimizer, inputs.data.fingerprint)
        found = position, read_json(checkpoint / "results.json")
    except (ValueError, OSError) as wrong:
        error = wrong
    raise_together(error)
    assert found is not None
    return found


def _take_folder(config: Config, ranks: Ranks) -> tuple[RunFolder, Path | None]:
    """Rank 0 locks the folder and finds the checkpoint to go on from; all ranks learn it."""
    folder, checkpoint, error = RunFolder(config.out), None, None
    if ranks.is_main:
        try:
            folder.lock()
            checkpoint = folder.newest_checkpoint()
        except ValueError as found:
            error = found
    raise_together(error)
    return folder, from_main(checkpoint)


def compiles(config: Config, device: torch.device) -> bool:
    """Whether network and loss go through torch.compile."""
    return config.compile == "on" or (config.compile == "auto" and device.type == "cuda")


def _step_model(model: GPT, config: Config, ranks: Ranks) -> nn.Module:
    """Network and loss in one: compiled, then replicated."""
    module: nn.Module = NextTokenLoss(model)
    if compiles(config, ranks.device):
        module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return replicate(module, ranks)


def _progress(config: Config, ranks: Ranks, inputs: Inputs) -> Progress:
    on_cuda = ranks.device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(ranks.device)) if on_cuda else None
    flops = training_flops_per_token(inputs.network)
    return Progress(inputs.plan, inputs.steps, flops, peak)


def _metric_log(folder: RunFolder, ranks: Ranks, steps: int, step: int) -> MetricLog:
    """Writers on rank 0 only; lines and events of steps that will be done again are taken back."""
    if not ranks.is_main:
        return MetricLog([])
    cut_lines(folder.metrics, folder.discarded_metrics, step)
    purge = step if step or folder.tensorboard.exists() else None
    return MetricLog(
        [Console(steps), JsonLines(folder.metrics), TensorBoard(folder.tensorboard, purge)]
    )


def _announce(run: Run) -> None:
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
    }
    log.info("%s", "  ".join(f"{key} {value}" for key, value in settings.items()))
    if not ranks.is_main:
        return
    record = {
        "config": config.as_json(run.model.config),
        "data_fingerprint": run.data.fingerprint,
        "run": settings,
    }
    write_json(run.folder.config, record)  # what may change between starts is what runs now
    run.metrics.write_text(run.step, "config", json.dumps(record, indent=2))
    run.folder.write_status("running", run.step)
