"""SGD: every weight moves along its gradient, or along a momentum of gradients."""

from dataclasses import dataclass

import torch
from torch.optim import SGD

from model.config import GPTConfig
from model.estimates.updates import UpdateCost, sgd_update
from model.gpt import GPT
from storage.options.usual import Usual
from train.optimizers.adamw import parameter_groups
from train.optimizers.config import OptimizerConfig, check_rates

_MOMENTUM = "momentum_buffer"  # as torch names it in its state


@dataclass(frozen=True)
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent, without momentum and clipping unless they are given."""

    lr: Usual[float] = 0.5
    """Largest learning rate, at the end of the warm-up."""
    momentum: float = 0.0
    """Decay rate of the sum of gradients that a weight moves along, from 0 to 1."""
    nesterov: bool = False
    """Move along the gradient and the momentum that follows from it (Nesterov)."""
    weight_decay: float = 0.0
    """Added to the gradient of matrices and embeddings, times the weight (L2)."""
    clip: float | None = None
    """Scale the gradient down to this norm if it is larger. None disables clipping."""

    def __post_init__(self) -> None:
        check_rates(self, positive=("lr",), shares=("momentum",), not_negative=("weight_decay",))
        if self.nesterov and not self.momentum:
            raise ValueError(
                "optimizer.nesterov=True needs a momentum; give --optimizer.momentum 0.9 too"
            )

    def update_cost(self, network: GPTConfig, device: str) -> UpdateCost:
        """One float32 for each parameter if there is a momentum, else nothing."""
        return sgd_update(network, device, self.momentum > 0)


def build_sgd(model: GPT, config: SGDConfig) -> SGD:
    """The fused SGD of torch for CPU and CUDA, over all parameters of `model`."""
    groups = parameter_groups(model, config.weight_decay)
    optimizer = SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )
    if config.momentum:
        # torch makes it in the first update, without values if that one is skipped. From zero the
        # first update is the same.
        for parameter in model.parameters():
            optimizer.state[parameter][_MOMENTUM] = torch.zeros_like(parameter)
    return optimizer
