"""Repeats the steps of a segment of a run, on any number of ranks, without a run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from data_prep.order.training_data import TrainingData
from data_prep.order.weights import WeightStart
from eval.subject import Subject
from eval.tasks.mixture_loss import mixture_loss
from model.checkpoint import named_weights
from model.config import GPTConfig
from model.fused_loss.head_and_loss import fuses_loss
from model.gpt import GPT
from parallel.collectives import together
from parallel.ranks import Ranks
from storage.atomic import read_json
from storage.checkpoint_folder import RESULTS_FILE, step_of
from train.auditing.recorded_run import RecordedRun, Stretch
from train.batch_plan import plan_batch, share_of
from train.build import build_learner, new_network
from train.checkpoints.checkpoint import load_checkpoint, validation_loss_of
from train.checkpoints.config_changes import processors
from train.checkpoints.host_copy import OPTIMIZER, WEIGHTS, state_tensors
from train.checkpoints.state_digest import model_digest
from train.config import Config
from train.guards.spikes import ZERO_OUTPUT_STEPS, Guard
from train.loader import Loader
from train.memory.forecast import how_compiled, step_attention
from train.mixture import recorded_starts, weight_starts
from train.schedule import learning_rate
from train.step import DIGEST, LOSS, NORM, SKIPPED, Learner, join_digest

_State = dict[str, Tensor]


@dataclass
class Repeated:
    """What repeating a segment gave."""

    began: str
    """Digest of the weights before its first step."""
    lines: dict[int, dict[str, Any]]
    """For each step, what its metric line must say."""
    before: _State
    """Weights and optimizer state before the first step, in host memory."""
    after: _State
    """The same after the last one."""
    next_window: int
    results: dict[str, float]
    """Validation loss and bits per byte after the last one, if its checkpoint has them."""
    differences: list[str]
    """What affects rounding and is not as it was in the run."""
    weight_starts: Sequence[WeightStart] = ()
    """Where the weights of a mixture change."""


def repeat_segment(
    run: RecordedRun,
    data: TrainingData,
    ranks: Ranks,
    first: int,
    stop: int,
    otherwise: bool = False,
) -> Repeated:
    """Repeat the steps [first, stop) from the checkpoint of `first`, or from the beginning.

    All ranks call this. `otherwise`: in other micro-batches, which round differently.
    Raises: ValueError if the checkpoint, the initial weights or the settings cannot be used.
    """
    repeated: Repeated | None = None
    guard = None
    for begin, end, stretch in run.parts(first, stop):
        part = _Part(run, data, ranks, stretch, begin, otherwise)
        if repeated is None:
            repeated = part.begin(run, first)
        else:
            part.continue_from(repeated)
        guard = part.guard_after(guard)
        try:
            repeated.lines |= part.steps(end)
        finally:
            part.loader.close()
        repeated.after, repeated.next_window = part.state(), part.loader_position
        if end == stop and validation_at(run, stop):
            repeated.results = part.validation()
        repeated.differences += part.differences(stretch)
        del part  # its DDP replica must be freed before the next one, and the process group
    assert repeated is not None
    return repeated


class _Part:
    """Steps that were made in one way, and the network that makes them again."""

    def __init__(
        self,
        run: RecordedRun,
        data: TrainingData,
        ranks: Ranks,
        stretch: Stretch,
        first: int,
        otherwise: bool,
    ) -> None:
        config = config_here(stretch, ranks.device.type, otherwise)
        if first > 0:
            config = replace(config, init=None)
        threads = stretch.made.get("threads")
        if ranks.device.type == "cpu" and type(threads) is int and threads > 0:
            torch.set_num_threads(threads)
        self.config, self.data, self.step = config, data, first
        self.run_lines = run.lines
        self.run_steps = stretch.steps_of_run(data)
        network: GPTConfig = config.network_for(data.tokenizer().n_vocab)
        share = share_of(config, ranks.world_size)
        micro_batch = _fitting(share, stretch.micro_batch)
        if otherwise:
            micro_batch = _other_micro_batch(share, micro_batch)
        plan = together(partial(plan_batch, config, ranks.world_size, micro_batch))
        self.model, self.optimizer = new_network(config, network, ranks)
        separator = config.separator_of(data.tokenizer().end_of_text)
        self.learner: Learner = build_learner(
            config, (self.model, self.optimizer), plan, ranks, separator=separator
        )
        zero_outputs = network.initial_weights == "zero_outputs"
        self.guard = Guard(config.guard, first_step=ZERO_OUTPUT_STEPS if zero_outputs else 0)
        self.loader_position = 0
        self.weight_starts: Sequence[WeightStart] = ()
        self.loader: Loader

    def begin(self, run: RecordedRun, first: int) -> Repeated:
        """Take the state of the checkpoint of the segment's first step, or the initial weights."""
        if first > 0:
            checkpoint = next(path for path in run.checkpoints if step_of(path) == first)
            self._load(checkpoint)
        self._ready()
        state = self.state()
        return Repeated(model_digest(self.model), {}, state, state, self.loader_position, {}, [])

    def _load(self, checkpoint: Path) -> None:
        position = load_checkpoint(checkpoint, self.model, self.optimizer, self.data.fingerprint)
        self.loader_position = position.next_window
        self.weight_starts = recorded_starts(position)
        if position.guard is not None:
            self.guard.load_history(position.guard)

    def continue_from(self, before: Repeated) -> None:
        """Take the state that the part before has left."""
        _load_state(self.model, self.optimizer, before.after)
        self.loader_position = before.next_window
        self.weight_starts = before.weight_starts
        self._ready()

    def _ready(self) -> None:
        learner, config = self.learner, self.config
        learner.updates = self.step
        learner.fix_bucket_layout()
        begun = [start for start in self.weight_starts if start.step < self.step]
        self.weight_starts = weight_starts(
            *(config.weight_changes, begun, self.step, self.loader_position),
            *(learner.plan.windows, config.skips),
        )
        # Not the stored indexes of the epochs: what an audit reads follows from the data alone.
        stream = self.data.stream(config.seed, self.weight_starts, stored_indexes=False)
        self.loader = Loader(
            stream, learner.plan, learner.ranks, self.loader_position, config.skips
        )

    def guard_after(self, before: Guard | None) -> Guard:
        """The guard, with the steps that that of the part before has seen."""
        if before is not None:
            self.guard.load_history(before.history(self.step))
        return self.guard

    def steps(self, stop: int) -> dict[int, dict[str, Any]]:
        """Make the steps up to `stop`; returns what each metric line must say."""
        found = {}
        config, learner = self.config, self.learner
        for step in range(self.step, stop):
            evaluated = self.run_lines.get(step, {}).get("val/loss") is not None
            measured = self.validation() if evaluated else {}
            batch = self.loader.next_step()
            lr = learning_rate(step, self.run_steps, config.optimizer.lr, config.schedule)
            values = learner.step(batch, lr, False, self.guard.limits(step))
            self.loader_position = batch.first_window + learner.plan.windows
            loss, norm, skipped = (values[at].item() for at in (LOSS, NORM, SKIPPED))
            self.guard.record(step, batch.first_window, loss, norm, bool(skipped))
            found[step] = measured | {
                "train/loss": loss,
                "train/grad_norm": norm,
                "train/lr": lr,
                "train/skipped": int(skipped),
                "data/first_window": batch.first_window,
                "data/windows": learner.plan.windows,
                "data/digest": f"{join_digest(values[DIGEST]):016x}",
            }
        self.step = stop
        return found

    def validation(self) -> dict[str, float]:
        """Validation loss and bits per byte of the present weights."""
        learner = self.learner
        return mixture_loss(
            Subject(self.model, self.data.tokenizer(), learner.ranks, self.config.mask_documents),
            self.data,
            tokens=self.config.eval.validated_tokens,
            context_length=learner.plan.context_length,
            micro_batch=learner.plan.micro_batch,
            dtype=learner.dtype,
        )

    def differences(self, stretch: Stretch) -> list[str]:
        """What affects rounding and is not as it was. All ranks call this."""
        learner, config, plan = self.learner, self.config, self.learner.plan
        device = learner.ranks.device
        here = {
            "world_size": plan.world_size,
            "micro_batch": plan.micro_batch,
            "device": device.type,
            "dtype": str(learner.dtype).removeprefix("torch."),
            "attention": step_attention(config, self.model.config, learner.ranks),
            "compiled": how_compiled(config, device),
            "fused_loss": str(fuses_loss(config.fused_loss, device)),
            "reduction": config.reduction,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            **processors(learner.ranks),
        }
        there = {"reduction": "ddp", **stretch.made, "world_size": stretch.world_size}
        there["micro_batch"] = stretch.micro_batch
        if config.reduction == "tree":  # then their number decides no bit
            del here["world_size"]
        found = [
            f"{key} {there.get(key, 'not recorded')}, here {value}"
            for key, value in here.items()
            if there.get(key) != value
        ]
        if device.type == "cuda" and not config.deterministic:
            found.append("the run had no --deterministic")
        return found

    def state(self) -> _State:
        """Weights and optimizer state, copied to host memory."""
        found = state_tensors(self.model, self.optimizer)
        return {name: tensor.detach().cpu().clone() for name, tensor in found.items()}


def validation_at(run: RecordedRun, step: int) -> dict[str, Any]:
    """What the checkpoint of a step says of its validation; empty without one, or without any."""
    for checkpoint in run.checkpoints:
        if step_of(checkpoint) == step and validation_loss_of(checkpoint) is not None:
            return read_json(checkpoint / RESULTS_FILE)["metrics"]
    return {}


def _load_state(model: GPT, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give a network and its optimizer the tensors that `state_tensors` names."""
    parameters = dict(named_weights(model))
    with torch.no_grad():
        for full_name, tensor in state.items():
            if full_name.startswith(WEIGHTS):
                parameters[full_name.removeprefix(WEIGHTS)].copy_(tensor)
            else:
                key, _, name = full_name.removeprefix(OPTIMIZER).partition(".")
                parameter = parameters[name]
                optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)


def config_here(stretch: Stretch, device: str, otherwise: bool) -> Config:
    """The settings with which steps are repeated on a device, with the run's number format.

    On another kind of device than the run's nothing here rounds as there: `otherwise` is then in
    bfloat16, which rounds more coarsely than TF32 and float32 do.
    """
    config = replace(stretch.config, device=device)
    dtype = stretch.made.get("dtype")
    if config.dtype == "auto" and dtype in ("float32", "bfloat16"):
        config = replace(config, dtype=dtype)
    if otherwise and stretch.made.get("device", device) != device:
        config = replace(config, dtype="bfloat16")
    return config


def _fitting(share: int, micro_batch: int) -> int:
    """The run's micro-batch, or the largest below it that divides a rank's windows here."""
    return next(n for n in range(min(share, micro_batch), 0, -1) if share % n == 0)


def _other_micro_batch(share: int, micro_batch: int) -> int:
    """One that rounds differently: half of it or less, or twice; the same if there is none."""
    if micro_batch > 1:
        return _fitting(share, micro_batch // 2)
    return 2 if share % 2 == 0 else 1
