"""The loss of rows of logits and, over the logits, its gradient: one Triton kernel for CUDA.

Memory traffic is one read and one write of the logits: a row (50,304 bfloat16: 98 KiB) that was
just read for its logsumexp is read again from the L2 cache. Arithmetic is float32 throughout.
Triton comes with torch for CUDA; without it this room only says that it is missing.
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
    def softmax_less_target(  # noqa: ANN201
        logits,  # noqa: ANN001
        targets,  # noqa: ANN001
        losses,  # noqa: ANN001
        stride,  # noqa: ANN001
        V: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One program a row: its loss, and over its logits softmax - onehot(target)."""
        row = tl.program_id(0).to(tl.int64)  # rows times V passes 2**31
        start_of_row = logits + row * stride
        target = tl.load(targets + row)
        wanted = tl.load(start_of_row + target).to(tl.float32)
        largest = -float("inf")
        total = 0.0
        for start in range(0, V, BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(start_of_row + places, mask=places < V, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(largest, tl.max(x, axis=0))
            total = total * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), axis=0)
            largest = higher
        logsumexp = largest + tl.log(total)
        tl.store(losses + row, logsumexp - wanted)
        for start in range(0, V, BLOCK):
            places = start + tl.arange(0, BLOCK)
            x = tl.load(start_of_row + places, mask=places < V, other=0.0).to(tl.float32)
            gradient = tl.exp(x - logsumexp) - (places == target).to(tl.float32)
            tl.store(start_of_row + places, gradient, mask=places < V)


def loss_kernel(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite `logits` by softmax - onehot(target); returns the loss of each row in float32.

    Shapes: logits (N, V), each row contiguous, targets (N) int64 -> (N) float32.
    """
    rows, V = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    softmax_less_target[(rows,)](  # type: ignore[possibly-unbound]
        logits, targets, losses, logits.stride(0), V=V, BLOCK=BLOCK, num_warps=WARPS
    )
    return losses
