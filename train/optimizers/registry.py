"""Optimizers by name. A new one is a file like adamw.py and a line in OPTIMIZERS."""

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import Optimizer

from model.config import GPTConfig
from model.gpt import GPT
from train.optimizers.adamw import AdamWConfig, build_adamw
from train.optimizers.config import OptimizerConfig
from train.optimizers.muon import MuonConfig, build_muon
from train.optimizers.sgd import SGDConfig, build_sgd

_LAYER = re.compile(r"^h\.\d+\.")  # the beginning of the name of a block's parameter
# Gradient of an update, and whether it is to be skipped: also one that is finite, as of a spike.
_TRIALS = ((float("nan"), True), (1.0, False), (9.0, True), (-2.0, False), (float("inf"), True))


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is configured and built."""

    config: type[OptimizerConfig]
    build: Callable[[GPT, Any], Optimizer]
    """From the network and a `config`, the optimizer over all of the network's parameters."""


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(AdamWConfig, build_adamw),
    "muon": OptimizerKind(MuonConfig, build_muon),
    "sgd": OptimizerKind(SGDConfig, build_sgd),
}


def optimizer_name(config: OptimizerConfig) -> str:
    """The name of the optimizer that `config` configures."""
    return next(name for name, kind in OPTIMIZERS.items() if type(config) is kind.config)


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizer:
    """The optimizer that `config` describes, over all of the model's parameters.

    Raises: ValueError if it does not honour the skip flag of `update`.
    """
    kind = OPTIMIZERS[optimizer_name(config)]
    _check_skips(optimizer_name(config), kind, config, model.config)
    return kind.build(model, config)


def state_names(shape: GPTConfig, config: OptimizerConfig) -> set[str]:
    """What the optimizer keeps of a network after an update, as `<key>.<parameter name>`."""
    tiny = _tiny_network(shape)
    optimizer = OPTIMIZERS[optimizer_name(config)].build(tiny, config)
    _try_updates(tiny, optimizer, ((1.0, False),))
    kept = {name: set(optimizer.state.get(p, ())) for name, p in tiny.named_parameters()}
    with torch.device("meta"):
        names = [name for name, _ in GPT(shape).named_parameters()]
    return {f"{key}.{name}" for name in names for key in kept[_LAYER.sub("h.0.", name)]}


def update(optimizer: Optimizer, step: int, lr: float, skip: torch.Tensor) -> None:
    """Update `step` at learning rate `lr`, unless `skip` (a 0/1 scalar on the device) is 1.

    A group may have a rate of its own, `lr_ratio` times `lr`. Fused optimizers read `found_inf` on
    the device. If it is 1 they leave weights, moments and step counts as they are, and nothing
    waits for the host.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
    optimizer.updates = step  # type: ignore[attr-defined]
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def _check_skips(name: str, kind: OptimizerKind, config: OptimizerConfig, shape: GPTConfig) -> None:
    """Update two copies of a tiny network; one of them also has updates that are to be skipped.

    Raises: ValueError naming the optimizer if the copies differ afterwards. A step with a loss that
    is not finite would then destroy the weights, or the moments that the next weights depend on.
    """
    skipping = _tiny_network(shape)
    straight = deepcopy(skipping)
    applied = [trial for trial in _TRIALS if not trial[1]]
    try:
        states = [
            _try_updates(model, kind.build(model, config), trials)
            for model, trials in ((skipping, _TRIALS), (straight, applied))
        ]
        honoured = all(_equal(*one) for one in zip(*states, strict=True))
    except AssertionError:  # torch's optimizers that are not fused assert that there is no flag
        honoured = False
    if not honoured:
        raise ValueError(
            f"optimizer {name} changes weights or its state in a step that is to be skipped: it "
            "does not honour `found_inf`; use a fused torch optimizer, or read the flag in step()"
        )


def _tiny_network(shape: GPTConfig) -> GPT:
    """A network of this kind with two blocks, as small as possible, with its initial weights."""
    sizes = {"n_layer": 2, "n_head": 1, "n_embd": 2, "context_length": 2, "vocab_size": 2}
    model = GPT(replace(shape, mlp_width=None, **sizes))
    model.initialise(0)
    return model


def _try_updates(
    model: GPT, optimizer: Optimizer, trials: Sequence[tuple[float, bool]]
) -> list[dict[str, Any]]:
    """One update for each trial; returns what the weights and their states are afterwards."""
    step = 0  # of those that count: an optimizer's settings may follow the step
    for gradient, skip in trials:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        update(optimizer, step, lr=0.1, skip=torch.tensor(float(skip)))
        step += not skip
    return [{"": p.detach(), **optimizer.state.get(p, {})} for p in model.parameters()]


def _equal(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a parameter and its state are the same, bit for bit."""
    return own.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(own[key]), torch.as_tensor(other[key])) for key in own
    )
