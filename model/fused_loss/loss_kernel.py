"""The loss on CUDA: a Triton kernel that overwrites each row of logits by its gradient.

It can be interpreted and compiled without a GPU (tests/model/fused_loss/test_loss_kernel.py).
Shape letters: N rows (tokens of all windows), V vocabulary.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
BLOCK = 8192  # logits that one program holds in registers at a time
WARPS = 16

if HAS_TRITON:
    import triton  # type: ignore[import-not-found]
    import triton.language as tl  # type: ignore[import-not-found]

    @triton.jit
    def _softmax_minus_one_hot_kernel(  # noqa: ANN202
        logits,  # noqa: ANN001
        targets,  # noqa: ANN001
        losses,  # noqa: ANN001
        stride,  # noqa: ANN001
        softcap,  # noqa: ANN001
        V: tl.constexpr,
        CAPPED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One program for each row: writes its loss, and overwrites its logits."""
        row = tl.program_id(0).to(tl.int64)  # rows x V exceeds 2**31
        start_of_row = logits + row * stride
        target = tl.load(targets + row)
        # A target outside of the row makes the loss NaN, and no memory outside of it is read.
        in_row = (target >= 0) & (target < V)
        wanted = tl.load(start_of_row + target, mask=in_row, other=float("nan")).to(tl.float32)
        if CAPPED:
            wanted = softcap * (2 * tl.sigmoid(2 * wanted / softcap) - 1)  # tanh
        # Largest logit and sum of exponentials in one pass (https://arxiv.org/abs/1805.02867).
        # It begins with the least float32: after a block of -inf, -inf - -inf would be NaN.
        largest = -3.4028234663852886e38
        total = 0.0
        for start in range(0, V, BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(start_of_row + places, mask=places < V, other=-float("inf")).to(tl.float32)
            if CAPPED:
                capped = softcap * (2 * tl.sigmoid(2 * x / softcap) - 1)
                x = tl.where(places < V, capped, -float("inf"))
            higher = tl.maximum(largest, tl.max(x, axis=0))
            total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), axis=0)
            largest = higher
        logsumexp = largest + tl.log(total)
        tl.store(losses + row, logsumexp - wanted)
        for start in range(0, V, BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(start_of_row + places, mask=places < V, other=0.0).to(tl.float32)
            slope = 1.0
            if CAPPED:
                bounded = 2 * tl.sigmoid(2 * x / softcap) - 1
                x, slope = softcap * bounded, 1 - bounded * bounded
            gradient = slope * (tl.exp(x - logsumexp) - (places == target).to(tl.float32))
            tl.store(start_of_row + places, gradient, mask=places < V)


def softmax_minus_one_hot_on_cuda_(
    logits: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    block: int = BLOCK,
    warps: int = WARPS,
) -> Tensor:
    """The same as `softmax_minus_one_hot_` in head_and_loss.py, by the kernel.

    A target outside of 0 ... V - 1 makes the loss of its row NaN.
    Shapes: logits (N, V), each row contiguous, targets (N) int64 -> (N) float32.
    """
    rows, V = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _softmax_minus_one_hot_kernel[(rows,)](  # type: ignore[possibly-unbound]
        *(logits, targets, losses, logits.stride(0), softcap or 0.0),
        V=V,
        CAPPED=softcap is not None,
        BLOCK=block,
        num_warps=warps,  # type: ignore[call-arg]  # of Triton, not of the kernel
    )
    return losses
