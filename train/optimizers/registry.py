"""Optimizers by configuration type. A new one is its own file and a line in OPTIMIZERS."""

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from model.gpt import GPT
from train.optimizers.adamw import AdamWConfig, build_adamw

OptimizerConfig = AdamWConfig
OPTIMIZERS: dict[type, Callable[[GPT, AdamWConfig], Optimizer]] = {AdamWConfig: build_adamw}


def build_optimizer(model: GPT, config: OptimizerConfig) -> Optimizer:
    """The optimizer that `config` describes, over all of the model's parameters."""
    return OPTIMIZERS[type(config)](model, config)


def update(optimizer: Optimizer, lr: float, skip: torch.Tensor) -> None:
    """One update at learning rate `lr`, unless `skip` (a 0/1 scalar on the device) is 1.

    Fused optimizers read `found_inf` on the device: with 1 they leave weights, moments and step
    counts as they are, and nothing waits for the host.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()
