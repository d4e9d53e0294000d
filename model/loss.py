"""The training loss: mean next-token cross-entropy over all logits, in float32."""

from torch import Tensor, nn
from torch.nn import functional as F

from model.gpt import GPT


class NextTokenLoss(nn.Module):
    """Network and loss as one module, so that compilation and DDP see one forward pass."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss in nats. Shapes: ids (B, T), targets (B, T) integers -> ()."""
        logits = self.model.head(self.model.hidden(ids))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().long())
