"""Muon for the matrices of the blocks, AdamW for everything else.

Muon's update is the momentum with all singular values made about 1, so that no direction is learned
slower than another. Every rank computes all of it from the same gradients: nothing is communicated.
Sources: https://kellerjordan.github.io/posts/muon/, and for the coefficients Polar Express,
https://arxiv.org/abs/2505.16932. Shape letters: n matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from model.config import GPTConfig
from model.estimates.updates import UpdateCost, muon_update
from model.gpt import GPT
from storage.options.usual import Usual
from train.optimizers.config import OptimizerConfig, check_rates

# Algorithm of Polar Express for five iterations, safety factor 2e-2, cushion 2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
_SAFETY = 1.01
# Largest rates of the scales of shortcuts: https://github.com/KellerJordan/modded-nanogpt, record
# of 2024-11-10, and for the stream's, which multiply up, https://github.com/karpathy/nanochat
_SHORTCUT_LR = 0.04
_STREAM_LR = 0.005
# With 0.7 the loss of a small GPT-2 shape first rose from 6.0 to 10.2 (bench/LOG.md).
_TIED_EMBEDDING_LR = 0.03
_STACKED = {"attn.c_attn.weight": 3}  # query, key and value are three matrices


@dataclass(frozen=True)
class MuonConfig(OptimizerConfig):
    """Muon and AdamW. The defaults are those of modded-nanogpt's tuned baseline (pull request 323).

    https://github.com/KellerJordan/modded-nanogpt, records/track_3_optimization
    """

    lr: Usual[float] = 0.025
    """Largest learning rate of the blocks' matrices; the metric train/lr shows this one."""
    momentum: float = 0.95
    """Decay rate of the average of gradients of these matrices, from 0 to 1."""
    momentum_start: float = 0.85
    """The same at step 0; it then grows linearly."""
    momentum_steps: int = 300
    """Steps until the decay rate is `momentum`."""
    weight_decay: float = 0.05
    """Decoupled weight decay of these matrices."""
    embedding_lr: float = 0.7
    """Largest learning rate of the embeddings, by AdamW; it follows the same schedule."""
    head_lr: float = 0.004
    """Largest learning rate of an untied head, by AdamW."""
    scalar_lr: float = 0.015
    """Largest learning rate of biases and weights of norms, by AdamW; shortcuts have their own."""
    beta1: float = 0.8
    """AdamW's decay rate of the average of gradients (first moment), from 0 to 1."""
    beta2: float = 0.95
    """AdamW's decay rate of the average of squared gradients (second moment), from 0 to 1."""
    epsilon: float = 1e-10
    """Number that AdamW adds to the root of the second moment."""
    adam_weight_decay: float = 0.001
    """Decoupled weight decay of embeddings and head; vectors do not decay."""
    clip: float | None = None
    """Scale the gradient down to this norm if it is larger. None disables clipping."""

    def __post_init__(self) -> None:
        check_rates(
            self,
            positive=("lr", "embedding_lr", "head_lr", "scalar_lr", "epsilon"),
            shares=("momentum", "momentum_start", "beta1", "beta2"),
            not_negative=("weight_decay", "adam_weight_decay", "momentum_steps"),
        )

    @classmethod
    def defaults_for(cls, network: GPTConfig) -> Self:
        """A tied embedding is the head too, and takes less of a rate."""
        return cls(embedding_lr=_TIED_EMBEDDING_LR) if network.tied else cls()

    def momentum_at(self, step: int) -> float:
        """The momentum's decay rate in update `step`."""
        share = min(step / self.momentum_steps, 1.0) if self.momentum_steps else 1.0
        return self.momentum_start + share * (self.momentum - self.momentum_start)

    def update_cost(self, network: GPTConfig, device: str) -> UpdateCost:
        """Half of AdamW's state for the matrices; their update takes memory and products."""
        return muon_update(network, device)


def orthogonal(x: Tensor) -> Tensor:
    """The matrices with all singular values made about 1. Shapes: (n, R, C) -> (n, R, C).

    In bfloat16 on CUDA, as the steps need no more, and in the type of `x` elsewhere.
    """
    dtype, tall = x.dtype, x.size(1) > x.size(2)
    # 1e-6: momentum that is exactly zero, as behind a zero head in the first step, stays zero.
    x = x / (_SAFETY * torch.linalg.matrix_norm(x, keepdim=True) + 1e-6)
    x = x.bfloat16() if x.is_cuda else x
    x = x.mT if tall else x
    for a, b, c in POLAR_EXPRESS:
        A = x @ x.mT
        A = torch.baddbmm(A, A, A, beta=b, alpha=c)
        x = torch.baddbmm(x, A, x, beta=a)
    return (x.mT if tall else x).to(dtype)


class Muon(Optimizer):
    """The optimizer over all groups; the first one has the blocks' matrices."""

    def __init__(self, groups: list[dict], config: MuonConfig, stacks: list[int]) -> None:
        """`stacks`: of how many matrices each parameter of the first group consists."""
        betas = (config.beta1, config.beta2)
        self._adamw = AdamW(groups[1:], betas=betas, eps=config.epsilon, fused=True)
        super().__init__([groups[0], *self._adamw.param_groups], {"lr": config.lr})
        # The same objects: what `update` sets and a checkpoint restores is seen by both.
        self._adamw.param_groups = self.param_groups[1:]
        self._adamw.state = self.state
        self.config = config
        self.stacks = stacks
        self.updates = 0
        """Number of the update that follows, set by `update` in registry.py."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters, unless `found_inf` is 1; it is read on the device."""
        skip = getattr(self, "found_inf", None)
        self._adamw.found_inf = skip  # type: ignore[attr-defined]
        self._adamw.step()
        group = self.param_groups[0]
        # Batches by shape over the whole network: they are the same for any number of ranks.
        same_shape: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for parameter, stack in zip(group["params"], self.stacks, strict=True):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            parts = (t.chunk(stack) for t in (parameter, parameter.grad, state["momentum"]))
            for one in zip(*parts, strict=True):
                same_shape[one[0].shape].append(one)
        for matrices in same_shape.values():
            weights, gradients, momenta = map(list, zip(*matrices, strict=True))
            self._update(weights, gradients, momenta, group["lr"], skip)

    def _update(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        momenta: list[Tensor],
        lr: float,
        skip: Tensor | None,
    ) -> None:
        """Update matrices of one shape. Each list has n tensors (R, C), which are views."""
        # Chosen by `where`, not multiplied: 0 * NaN is NaN. One by one in place, because stacks of
        # old and new values took 2.7 times the memory (bench/LOG.md).
        skipped = weights[0].new_zeros(()).bool() if skip is None else skip.bool()
        decay = self.config.momentum_at(self.updates)
        for momentum, gradient in zip(momenta, gradients, strict=True):
            torch.where(skipped, momentum, momentum.lerp(gradient, 1 - decay), out=momentum)
        changes = orthogonal(torch.stack(gradients).lerp_(torch.stack(momenta), decay))  # Nesterov
        rows, columns = weights[0].shape
        scaled = lr * max(1.0, rows / columns) ** 0.5
        for weight, change in zip(weights, changes, strict=True):
            after = (weight * (1 - lr * self.config.weight_decay)).sub_(change, alpha=scaled)
            torch.where(skipped, weight, after, out=weight)


def build_muon(model: GPT, config: MuonConfig) -> Muon:
    """Muon over all parameters of `model`, in groups with learning rates of their own.

    Raises: ValueError for a network whose blocks have no matrices.
    """
    named = dict(model.named_parameters())
    matrices = [name for name, p in named.items() if name.startswith("h.") and p.dim() == 2]
    if not matrices:
        raise ValueError(
            f"optimizer.lr={config.lr} is for the matrices of blocks, and this network has none; "
            "use --optimizer adamw"
        )
    stream = [name for name in named if name == "shortcuts.stream"]
    shortcuts = [name for name in named if name.startswith("shortcuts.") and name not in stream]
    scales = {*stream, *shortcuts}
    vectors = [name for name, p in named.items() if p.dim() < 2 and name not in scales]
    head = [name for name in named if name == "lm_head.weight"]
    embeddings = [name for name in named if name not in {*matrices, *vectors, *head, *scales}]
    rates = (
        (matrices, config.lr, config.weight_decay),
        (embeddings, config.embedding_lr, config.adam_weight_decay),
        (head, config.head_lr, config.adam_weight_decay),
        (vectors, config.scalar_lr, 0.0),
        (shortcuts, _SHORTCUT_LR, 0.0),
        (stream, _STREAM_LR, 0.0),
    )
    groups = [
        {
            "params": [named[name] for name in names],
            "lr": lr,
            "lr_ratio": lr / config.lr,
            "weight_decay": decay,
        }
        for names, lr, decay in rates
    ]
    stacks = [_STACKED.get(name.split(".", 2)[2], 1) for name in matrices]
    return Muon([group for group in groups if group["params"]], config, stacks)
