"""RMS normalisation without weights, also for queries and keys.

Shape letters: C the normalised width.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

RMS_EPSILON = 1e-5


class PlainRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) over the last dimension; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., C) -> (..., C)."""
        return plain_rms_norm(x)


def plain_rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon), computed in float32. Shapes: (..., C) -> (..., C)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        return _OnCpu.apply(x)  # type: ignore[return-value]
    return F.rms_norm(x, x.shape[-1:], eps=RMS_EPSILON)


class _OnCpu(torch.autograd.Function):
    """The same in fewer passes over the memory.

    On the CPU torch has no kernel for it: forward and backward of (2048, 128) took 1,390 us of CPU
    time by F.rms_norm, 700 us so, and 450 us by layer_norm's kernel (bench/LOG.md).
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # noqa: ANN001
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = (length.square() / x.size(-1) + RMS_EPSILON).rsqrt()  # (..., 1)
        y = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> Tensor:  # type: ignore[override] # noqa: ANN001
        y, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(gradients[0], y).unsqueeze(-1) / y.size(-1)  # (..., 1)
        return torch.addcmul(gradients[0], y, along, value=-1).mul_(inverse)
