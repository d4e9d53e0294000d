"""Head and loss in one: each logit is overwritten by its gradient while it is at hand.

The plain path (model/loss.py) keeps logits, log-probabilities and the gradients of both, each of
V = 50,304 numbers a token. Here a chunk of logits becomes their gradient in place and is multiplied
out at once: no logit is computed twice and nothing of that size outlives the forward pass. An
operator of its own, so that torch.compile takes it whole.
"""

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Of logits on the CPU, at most: few enough to stay near the cache, enough rows for fast products.
CPU_CHUNK_BYTES = 100 * 2**20
CACHED_ROWS = 8


def fuses_loss(wanted: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether the step takes this path: auto is where it was measured to be faster, the CPU.

    Raises: ValueError if it is wanted on CUDA without Triton.
    """
    if wanted == "on" and device.type == "cuda" and not HAS_TRITON:
        raise ValueError(
            "fused_loss=on needs Triton on CUDA, which is not installed; pip install triton, or "
            "give --fused-loss off"
        )
    return wanted == "on" or (wanted == "auto" and device.type == "cpu")


def head_and_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean next-token loss in nats of the states `hidden` under the head's matrix `weight`.

    Matrix products follow autocast; exponentials, sums and the loss are float32.
    Shapes: hidden (..., C), weight (V, C), targets (...) integers -> ().
    """
    place = hidden.device.type
    dtype = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else hidden.dtype
    return _HeadAndLoss.apply(hidden.flatten(0, -2), weight, targets.flatten(), dtype)


class _HeadAndLoss(torch.autograd.Function):
    """Makes both gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:  # noqa: ANN001
        loss, hidden_gradient, weight_gradient = loss_and_gradients(hidden, weight, targets, dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):  # type: ignore[override] # noqa: ANN001, ANN205
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0] / len(hidden_gradient)
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None


@torch.library.custom_op("ratchet::loss_and_gradients", mutates_args=())
def loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The *summed* loss of all rows and its gradients by states and matrix.

    Unscaled gradients leave one scaling, by the mean and the number of micro-steps at once.
    Shapes: hidden (N, C), weight (V, C), targets (N) -> (), (N, C), (V, C); the gradients have the
    types of what they belong to, products are computed in `dtype`.
    """
    states, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
    rows = len(states)
    on_cpu = hidden.device.type == "cpu"
    chunk = equal_chunk(rows, len(matrix) * dtype.itemsize) if on_cpu else rows
    losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    hidden_gradient = torch.empty_like(states)
    weight_gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    logits = states.new_empty(chunk, len(matrix))
    overwrite = softmax_less_target_ if on_cpu else loss_kernel
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        block = torch.mm(states[part], matrix.T, out=logits[: part.stop - first])
        losses[part] = overwrite(block, targets[part])
        torch.mm(block, matrix, out=hidden_gradient[part])
        _add_product(weight_gradient, block, states[part], fresh=first == 0)
    return losses.sum(), hidden_gradient.to(hidden.dtype), weight_gradient


@loss_and_gradients.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden), torch.empty_like(weight)


def equal_chunk(rows: int, row_bytes: int) -> int:
    """Rows of one chunk, all alike: a short last one moves whole matrices for little work."""
    most = max(1, CPU_CHUNK_BYTES // row_bytes)
    return -(-rows // -(-rows // most))


def _add_product(total: Tensor, block: Tensor, states: Tensor, fresh: bool) -> None:
    """`total` = or += block.T @ states; sums over chunks are in total's own type."""
    if total.dtype != block.dtype:
        product = torch.mm(block.T, states)
        _ = total.copy_(product) if fresh else total.add_(product)
    elif fresh:
        torch.mm(block.T, states, out=total)
    else:
        total.addmm_(block.T, states)


def softmax_less_target_(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite `logits` by softmax - onehot(target); returns the loss of each row in float32.

    A few rows at a time, which stay in the cache meanwhile. The logsumexp is read off the largest
    logit and its probability, which saves a pass of exponentials: log p_max = x_max - logsumexp.
    Shapes: logits (N, V), targets (N) -> (N) float32.
    """
    losses = torch.empty(len(logits), dtype=torch.float32)
    for first in range(0, len(logits), CACHED_ROWS):
        part = slice(first, first + CACHED_ROWS)
        rows, places = logits[part], targets[part].long()[:, None]
        wide = rows.float()  # itself if it is float32
        wanted = wide.gather(1, places)
        largest = wide.amax(1, keepdim=True)
        torch.softmax(wide, 1, out=wide)
        losses[part] = (largest - wanted - wide.amax(1, keepdim=True).log())[:, 0]
        wide.scatter_add_(1, places, wide.new_full((), -1.0).expand_as(places))
        if wide is not rows:
            rows.copy_(wide)
    return losses


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
