"""Forgeries of tiny runs: edited records, and trainings that are not what they record."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import Optimizer

from bench.edited_records import (
    AT,
    Change,
    add_to_one,
    as_float32,
    average_with_before,
    change_json,
    change_lines,
    change_tensors,
    longer_training,
    lower_validation,
    other_data_claimed,
    other_seed_claimed,
    set_in_config,
    set_in_line,
    sibling_checkpoint,
    state_of_before,
    without_steps,
)
from data_prep.order.training_stream import TrainingStream
from data_prep.order.windows import OneSource, read_windows
from model.gpt import GPT
from train.optimizers.registry import update
from train.step import Learner, as_tensor


@dataclass(frozen=True)
class Forgery:
    """One way to cheat."""

    name: str
    edit: Change | None = None
    """What is edited in the folder of an honest run, or of one with `trained` settings."""
    trained: Mapping[str, Any] | None = None
    """Settings with which it was really trained."""
    cheat: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What is wrong in the code that trains."""
    chained: bool = True
    """Whether the records alone must show it, unless the chain is computed again."""


# --- training that is not what it records ---------------------------------------------------------


@contextmanager
def _in_steps(steps: range, wrong: Callable[..., Any], name: str) -> Iterator[None]:
    """Replace Learner.step in some steps."""
    sound = getattr(Learner, name)

    def replaced(learner: Learner, *words: Any, **more: Any) -> Any:
        if learner.updates in steps:
            return wrong(sound, learner, *words, **more)
        return sound(learner, *words, **more)

    with patch.object(Learner, name, replaced):
        yield


def _reads(shift: Mapping[int, int]) -> AbstractContextManager[Any]:
    """Some steps train on the windows of others, and record their own."""

    def wrong(sound: Any, learner: Learner, batch: Any, *words: Any) -> Any:
        plan = learner.plan
        first = batch.first_window + shift[learner.updates] * plan.windows
        windows = read_windows(_STREAM[0], first, plan.windows, plan.context_length)
        return sound(learner, replace(batch, windows=as_tensor(windows)), *words)

    return _in_steps(range(min(shift), max(shift) + 1), wrong, "step")


_STREAM: list[OneSource] = []  # of the run that is trained


def _updates(change: Callable[[Optimizer, int, float, Tensor], None], steps: range) -> Any:
    def wrong(optimizer: Optimizer, number: int, lr: float, skip: Tensor) -> None:
        if number in steps:
            change(optimizer, number, lr, skip)
        else:
            update(optimizer, number, lr, skip)

    return patch("train.step.update", wrong)


def _rate(factor: float, steps: range) -> AbstractContextManager[Any]:
    return _updates(lambda o, n, lr, skip: update(o, n, factor * lr, skip), steps)


def _no_update() -> AbstractContextManager[Any]:
    return _updates(lambda o, n, lr, s: update(o, n, lr, torch.ones_like(s)), range(13, 14))


def _forgotten_moments() -> AbstractContextManager[Any]:
    def change(optimizer: Optimizer, number: int, lr: float, skip: Tensor) -> None:
        for state in optimizer.state.values():
            state["exp_avg"].zero_()
        update(optimizer, number, lr, skip)

    return _updates(change, range(13, 14))


def _other_initial_weights() -> AbstractContextManager[Any]:
    sound = GPT.initialise
    return patch.object(GPT, "initialise", lambda model, seed: sound(model, seed + 1))


def _half_the_batch() -> AbstractContextManager[Any]:
    def wrong(sound: Any, learner: Learner, batch: Any, *words: Any) -> Any:
        windows = batch.windows.clone()
        half = len(windows) // 2
        windows[half:] = windows[:half]
        return sound(learner, replace(batch, windows=windows), *words)

    return _in_steps(range(AT, AT + 4), wrong, "step")


@contextmanager
def noted_stream() -> Iterator[None]:
    """Note the training stream of the run that is made inside, for `_reads`."""
    sound = TrainingStream.__init__

    def noting(stream: TrainingStream, *words: Any, **more: Any) -> None:
        sound(stream, *words, **more)
        _STREAM[:] = [OneSource(stream)]

    with patch.object(TrainingStream, "__init__", noting):
        yield


def _last_bit(tensors: dict[str, Tensor]) -> None:
    tensors["ln_f.weight"].view(torch.int32)[0].add_(1)


_EMBEDDING, _MOMENT = "wte.weight", "exp_avg.h.0.mlp.c_fc.weight"
FORGERIES = (
    Forgery("one weight of a checkpoint edited by 0.01",
            change_tensors("model.safetensors", add_to_one(_EMBEDDING, 0.01))),
    Forgery("one weight edited in its last bit",
            change_tensors("model.safetensors", _last_bit)),
    Forgery("one moment of a checkpoint edited by 1e-6",
            change_tensors("optimizer.safetensors", add_to_one(_MOMENT, 1e-6))),
    Forgery("checkpoint replaced by its average with the one before", average_with_before),
    Forgery("checkpoint with the state of the one before", state_of_before),
    Forgery("checkpoint of a sibling run (another seed)", sibling_checkpoint),
    Forgery("last checkpoint of a run that trained four steps more", longer_training),
    Forgery("position in the data moved by a step",
            change_json("state.json", lambda s: s.update(next_window=s["next_window"] + 8))),
    Forgery("a loss lowered by 0.01", set_in_line(14, "train/loss", lambda loss: loss - 0.01)),
    Forgery("a validation loss lowered by 0.01, in line and checkpoint", lower_validation(16)),
    Forgery("the last validation loss lowered by 0.01", lower_validation(24), chained=False),
    Forgery("a gradient norm halved", set_in_line(14, "train/grad_norm", lambda norm: norm / 2)),
    Forgery("a metric line deleted", change_lines(lambda lines: lines.pop(14))),
    Forgery("four steps cut out, the later ones renumbered", without_steps),
    Forgery("rate in config.json edited afterwards", set_in_config("optimizer", "lr", 0.02)),
    Forgery("weight decay in config.json edited afterwards",
            set_in_config("optimizer", "weight_decay", 0.2)),
    Forgery("seed in config.json and checkpoints edited afterwards", other_seed_claimed),
    Forgery("trained with a clip of 0.5, config.json says 1",
            set_in_config("optimizer", "clip", 1.0), {"clip": 0.5}),
    Forgery("trained in bfloat16, the records say float32", as_float32, {"dtype": "bfloat16"}),
    Forgery("trained on another data set, the records name this one",
            other_data_claimed, {"data": "other"}),
    Forgery("two batches swapped", cheat=lambda: _reads({13: 1, 14: -1}), chained=False),
    Forgery("the windows of step 0, read again", cheat=lambda: _reads({13: -13}), chained=False),
    Forgery("the batch before, read again", cheat=lambda: _reads({13: -1}), chained=False),
    Forgery("half of the batch in four steps", cheat=_half_the_batch, chained=False),
    Forgery("an update not made, but recorded", cheat=_no_update, chained=False),
    Forgery("a rate 10 % higher in ten steps", cheat=lambda: _rate(1.1, range(12, 22)),
            chained=False),
    Forgery("a rate 0.1 % higher in one step", cheat=lambda: _rate(1.001, range(13, 14)),
            chained=False),
    Forgery("moments forgotten in one step", cheat=_forgotten_moments, chained=False),
    Forgery("initial weights of another seed", cheat=_other_initial_weights, chained=False),
)  # fmt: skip
