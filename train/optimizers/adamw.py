"""AdamW with weight decay on matrices and embeddings only."""

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW

from model.gpt import GPT


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW; the defaults are GPT-3's (https://arxiv.org/abs/2005.14165, appendix B)."""

    lr: float = 6e-4
    """Largest learning rate, reached at the end of the warm-up."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices and embeddings (not of biases and norms)."""
    clip: float | None = 1.0
    """Largest norm of the whole gradient; None never clips."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(
                f"optimizer.lr={self.lr} is not a rate; use a positive number like 6e-4"
            )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"optimizer.{name}={getattr(self, name)} is out of range; use 0 <= {name} < 1"
                )
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"optimizer.epsilon={self.epsilon} is not positive; use 1e-8")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(
                f"optimizer.weight_decay={self.weight_decay} is out of range; use 0 or more"
            )
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise ValueError(f"optimizer.clip={self.clip} is not positive; use None to never clip")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Every parameter in one of two groups: matrices and embeddings decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_adamw(model: GPT, config: AdamWConfig) -> AdamW:
    """Fused AdamW (CPU and CUDA): one kernel, and updates that the device itself can skip."""
    groups = parameter_groups(model, config.weight_decay)
    betas = (config.beta1, config.beta2)
    return AdamW(groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=True)
