"""Optimizers by name. A new one is a file like adamw.py and a line in OPTIMIZERS."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from model.config import GPTConfig
from model.gpt import GPT
from train.optimizers.adamw import AdamWConfig, build_adamw
from train.optimizers.config import OptimizerConfig


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is configured and built."""

    config: type[OptimizerConfig]
    build: Callable[[GPT, Any], Optimizer]
    """From the network and a `config`, the optimizer over all of the network's parameters."""


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(AdamWConfig, build_adamw),
}


def optimizer_name(config: OptimizerConfig) -> str:
    """The name of the optimizer that `config` configures."""
    return next(name for name, kind in OPTIMIZERS.items() if type(config) is kind.config)


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizer:
    """The optimizer that `config` describes, over all of the model's parameters.

    Raises: ValueError if it does not honour the skip flag of `update`.
    """
    kind = OPTIMIZERS[optimizer_name(config)]
    _check_skips(optimizer_name(config), kind, config)
    return kind.build(model, config)


def state_keys(config: OptimizerConfig) -> set[str]:
    """What the optimizer keeps for every parameter, such as its moments, after an update."""
    tiny = _tiny_network()
    optimizer = OPTIMIZERS[optimizer_name(config)].build(tiny, config)
    _try_updates(tiny, optimizer, skips=(False,))
    return set.intersection(*(set(optimizer.state.get(p, ())) for p in tiny.parameters()))


def update(optimizer: Optimizer, lr: float, skip: torch.Tensor) -> None:
    """One update at learning rate `lr`, unless `skip` (a 0/1 scalar on the device) is 1.

    Fused optimizers read `found_inf` on the device. If it is 1 they leave weights, moments and step
    counts as they are, and nothing waits for the host.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def _check_skips(name: str, kind: OptimizerKind, config: OptimizerConfig) -> None:
    """Update two copies of a tiny network; one of them also has updates that are to be skipped.

    Raises: ValueError naming the optimizer if the copies differ afterwards. A step with a loss that
    is not finite would then destroy the weights, or the moments that the next weights depend on.
    """
    skipping = _tiny_network()
    straight = deepcopy(skipping)
    try:
        _try_updates(skipping, kind.build(skipping, config), skips=(True, False, True, False))
        _try_updates(straight, kind.build(straight, config), skips=(False, False))
        both = zip(skipping.parameters(), straight.parameters(), strict=True)
        honoured = all(torch.equal(own, other) for own, other in both)
    except AssertionError:  # torch's optimizers that are not fused assert that there is no flag
        honoured = False
    if not honoured:
        raise ValueError(
            f"optimizer {name} changes weights or its state in a step that is to be skipped: it "
            "does not honour `found_inf`; use a fused torch optimizer, or read the flag in step()"
        )


def _tiny_network() -> GPT:
    return GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, context_length=2, vocab_size=2))


def _try_updates(model: GPT, optimizer: Optimizer, skips: tuple[bool, ...]) -> None:
    """One update for each of `skips`; the gradients of those that are to be skipped are NaN."""
    for skip in skips:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if skip else 1.0)
        update(optimizer, lr=0.1, skip=torch.tensor(float(skip)))
