"""Optimizers by name. A new one is a file like adamw.py and a line in OPTIMIZERS."""

from collections.abc import Callable
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
    """Try an update that is to be skipped on a tiny network.

    Raises: ValueError naming the optimizer if it changes a weight all the same: a step with a loss
    that is not finite would then destroy the weights.
    """
    tiny = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, context_length=2, vocab_size=2))
    optimizer = kind.build(tiny, config)
    before = [parameter.detach().clone() for parameter in tiny.parameters()]
    for parameter in tiny.parameters():
        parameter.grad = torch.ones_like(parameter)
    update(optimizer, lr=1.0, skip=torch.ones(()))
    after = tiny.parameters()
    if not all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise ValueError(
            f"optimizer {name} changes weights in a step that is to be skipped: it ignores "
            "`found_inf`; use a fused torch optimizer, or honour the flag in its step()"
        )
