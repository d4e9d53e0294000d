"""The training loss: mean next-token cross-entropy over all logits, in float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.fused_loss.head_and_loss import head_and_loss
from model.gpt import GPT


class NextTokenLoss(nn.Module):
    """Network and loss as one module, so that compilation and DDP see one forward pass."""

    def __init__(
        self,
        model: GPT,
        fused: bool = False,
        residual: torch.dtype | None = None,
        recompute: bool = False,
        separator: int | None = None,
        flex: bool = False,
    ) -> None:
        """`fused`: the same loss by model/fused_loss/; the others are as in GPT.hidden."""
        super().__init__()
        self.model = model
        self.fused = fused
        self.residual = residual
        self.recompute = recompute
        self.separator = separator
        self.flex = flex

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats. Shapes: ids (B, T), targets (B, T) integers -> ()."""
        # Only here: evaluation, sampling and the search for a bad window never drop anything.
        dropout = self.model.config.dropout
        # (B, T) -> (B, T, C)
        states = self.model.hidden(
            ids,
            residual=self.residual,
            dropout=dropout,
            recompute=self.recompute,
            separator=self.separator,
            flex=self.flex,
        )
        if self.fused:
            return head_and_loss(
                states, self.model.head_weight, targets, self.model.config.logit_softcap
            )
        logits = self.model.head(states)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long())
