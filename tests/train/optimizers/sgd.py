"""A second optimizer for tests of the choice: torch's SGD."""

from dataclasses import dataclass

from torch.optim import SGD

from train.optimizers.config import OptimizerConfig
from train.optimizers.registry import OptimizerKind


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """SGD with momentum."""

    lr: float = 0.5
    """Largest learning rate."""
    momentum: float = 0.0
    """Decay rate of the momentum."""
    clip: float | None = None
    """Largest norm of the gradient."""
    fused: bool = True
    """Use the kernel that reads the skip flag."""


def build_sgd(model, config):
    parameters = model.parameters()
    return SGD(parameters, lr=config.lr, momentum=config.momentum, fused=config.fused)


SGD_KIND = OptimizerKind(SGDConfig, build_sgd)
