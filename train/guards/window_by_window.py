"""Runs the windows of a bad step one by one through the plain network.

In: the network and the windows of a step. Out: loss and gradient norm of each window, the first
module with a value that is not finite, and the norms of all parameters and gradients.
Shape letters: T tokens of a window.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.gpt import GPT
from model.precision import autocast


@dataclass(frozen=True)
class WindowFinding:
    """Loss and gradient norm of one window."""

    window: int
    loss: float
    grad_norm: float
    broken_at: str = ""
    """Name of the first module, in order of computation, whose output is not finite."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass
class Findings:
    """The results of several windows, and the sum of their gradients."""

    windows: list[WindowFinding] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)
    """Gradient of the sum of all windows' mean losses; one tensor for each parameter."""
    left_out: list[int] = field(default_factory=list)
    """Windows that were not run because the time was up."""


def score_windows(
    model: GPT,
    windows: dict[int, np.ndarray],
    dtype: torch.dtype,
    seconds: float = math.inf,
    separator: int | None = None,
) -> Findings:
    """Run each window forward and backward, for at most about `seconds`.

    `separator`: as in GPT.hidden. Changes neither the model nor the `.grad` of its parameters.
    Shapes: windows, by number, (T + 1,) each.
    """
    parameters = list(model.parameters())
    found = Findings(gradient=[torch.zeros_like(p) for p in parameters])
    deadline = time.monotonic() + seconds
    for number, tokens in windows.items():
        if time.monotonic() > deadline:
            found.left_out.append(number)
            continue
        loss = _window_loss(model, tokens, dtype, separator)
        gradient = torch.autograd.grad(loss, parameters)  # unlike backward(): no hooks of DDP
        for total, part in zip(found.gradient, gradient, strict=True):
            total += part
        # float() waits for the device, so the deadline above counts finished work.
        norm = float(torch.nn.utils.get_total_norm(gradient))
        finding = WindowFinding(number, float(loss.detach()), norm)
        if not finding.finite:
            broken = _first_broken_module(model, tokens, dtype, separator)
            finding = WindowFinding(number, finding.loss, norm, broken)
        found.windows.append(finding)
    return found


def _window_loss(
    model: GPT, tokens: np.ndarray, dtype: torch.dtype, separator: int | None
) -> Tensor:
    """Mean loss of one window. Shapes: tokens (T + 1,) -> ()."""
    device = next(model.parameters()).device
    ids = torch.from_numpy(tokens.astype(np.int64)).to(device)
    # Not through the fused or compiled loss of the step, which may be what is wrong.
    with autocast(dtype, device):
        logits = model.head(model.hidden(ids[None, :-1], separator=separator))
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[1:])


def _first_broken_module(
    model: GPT, tokens: np.ndarray, dtype: torch.dtype, separator: int | None
) -> str:
    """Name of the module where the first value that is not finite appears in the forward pass."""
    with _record_not_finite(model) as broken, torch.no_grad():
        loss = _window_loss(model, tokens, dtype, separator)
    if broken:
        return broken[0]
    return "the gradient only" if math.isfinite(float(loss)) else "the head"


@contextmanager
def _record_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules whose output is not finite, in order of computation."""
    # A forward hook runs when its module is done, so inner modules come before outer ones.
    broken: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not bool(torch.isfinite(output).all()):
                broken.append(name)

        return hook

    handles = [m.register_forward_hook(hook_for(name)) for name, m in model.named_modules() if name]
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Layer:
    """Norms of one parameter of the network and of its gradient."""

    weight_norm: float
    weights_not_finite: int
    grad_norm: float


def layers(model: GPT, gradient: list[Tensor]) -> dict[str, _Layer]:
    """Norms of every parameter and of its gradient, by name."""
    found = {}
    for (name, weight), slope in zip(model.named_parameters(), gradient, strict=True):
        weight = weight.detach()
        bad = int((~torch.isfinite(weight)).sum())
        found[name] = _Layer(float(weight.norm()), bad, float(slope.norm()))
    return found
