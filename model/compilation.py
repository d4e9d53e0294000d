"""Network and loss through torch.compile: what costs only compilation; what decides bits."""

import logging
from importlib import import_module
from typing import Any

import torch
from torch import nn

_TUNING = "coordinate_descent_tuning"
_DETERMINISTIC = "deterministic"
log = logging.getLogger(__name__)


def compile_module(module: nn.Module, tuned: bool, deterministic: bool) -> nn.Module:
    """`module`, compiled once for each shape of its inputs.

    `tuned`: on CUDA, Inductor tries other block sizes and numbers of warps for each of its kernels.
    `deterministic`: Inductor takes no choice from a measurement, which another machine, or an empty
    cache, may decide otherwise. This is then so for the whole process.
    """
    if deterministic and _inductor_has(_DETERMINISTIC):
        # Not as an option of this module: kernels are measured when they are first launched.
        setattr(_inductor(), _DETERMINISTIC, True)
    options = {_TUNING: True} if tuned and _inductor_has(_TUNING) else None
    return torch.compile(module, dynamic=False, options=options)  # type: ignore[return-value]


def _inductor() -> Any:
    """Inductor's settings. Only here, because the import takes a second."""
    return import_module("torch._inductor.config")


def _inductor_has(setting: str) -> bool:
    """Whether this version of torch has the setting; a warning if not."""
    found = hasattr(_inductor(), setting)
    if not found:
        log.warning("torch %s has no torch._inductor.config.%s", torch.__version__, setting)
    return found
