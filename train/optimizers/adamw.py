"""AdamW, with weight decay only for matrices and embeddings."""

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

from model.gpt import GPT
from storage.options.usual import Usual
from train.optimizers.config import OptimizerConfig, check_rates


@dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW. The defaults are those of GPT-3 (https://arxiv.org/abs/2005.14165, appendix B)."""

    lr: Usual[float] = 6e-4
    """Largest learning rate, at the end of the warm-up."""
    beta1: float = 0.9
    """Decay rate of the average of gradients (first moment), from 0 to 1."""
    beta2: float = 0.95
    """Decay rate of the average of squared gradients (second moment), from 0 to 1."""
    epsilon: float = 1e-8
    """Number added to the root of the second moment, so that no division is by zero."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embeddings; biases and norms do not decay."""
    clip: float | None = 1.0
    """Scale the gradient down to this norm if it is larger. None disables clipping."""

    def __post_init__(self) -> None:
        check_rates(
            self,
            positive=("lr", "epsilon"),
            shares=("beta1", "beta2"),
            not_negative=("weight_decay",),
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups with all parameters: matrices and embeddings decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_adamw(model: GPT, config: AdamWConfig) -> AdamW:
    """The fused AdamW of torch for CPU and CUDA, over all parameters of `model`."""
    # Fused: few kernels, and it reads `found_inf` on the device, so that an update can be skipped
    # without waiting for the host (see `update` in registry.py).
    groups = parameter_groups(model, config.weight_decay)
    betas = (config.beta1, config.beta2)
    return AdamW(groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=True)
