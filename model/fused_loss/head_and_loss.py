"""Head and loss in one operator, which overwrites each logit by its gradient.

The plain path (model/loss.py) keeps logits, log-probabilities and the gradients of both, each with
V = 50,304 numbers for a token. Here a chunk of logits is overwritten by its gradient and multiplied
with the head's matrix and the states at once. No logit is computed twice, and no tensor of this
size is kept after the forward pass. torch.compile treats it as one opaque operator.
Shape letters: N rows (tokens of all windows), C n_embd, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.fused_loss.loss_kernel import HAS_TRITON, softmax_minus_one_hot_on_cuda_
from model.precision import product_dtype

# Devices on which `--fused-loss auto` is this operator. It is not measured on CUDA yet: with "cuda"
# in this line it is the default there too (bench/GPU_TODO.md).
_FASTER_ON = ("cpu",)
# Maximum size of a chunk of logits on the CPU: small enough for the caches, large enough for fast
# matrix products.
# Head and loss of 512 tokens with chunks of 24, 48 and 96 MiB: 832, 773 and 782 ms in float32,
# 592, 532 and 428 ms in bfloat16 (bench/LOG.md, 2026-11-21).
CPU_CHUNK_BYTES = 100 * 2**20
CACHED_BYTES = 2**19  # of float32 logits that are overwritten together


def fuses_loss(wanted: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether to use this operator: `auto` is where it was measured to be faster.

    Raises: ValueError if it is asked for on CUDA without Triton.
    """
    possible = device.type == "cpu" or HAS_TRITON
    if wanted == "on" and not possible:
        raise ValueError(
            "fused_loss=on needs Triton on CUDA, which is not installed; pip install triton, or "
            "give --fused-loss off"
        )
    return wanted == "on" or (wanted == "auto" and possible and device.type in _FASTER_ON)


def head_and_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> Tensor:
    """Mean next-token loss in nats of the states `hidden` and the head's matrix `weight`.

    `softcap` bounds the logits, as in GPTConfig.

    Matrix products follow autocast. Exponentials, sums and the loss are float32.
    Shapes: hidden (..., C), weight (V, C), targets (...) integers -> ().
    """
    flat = (hidden.flatten(0, -2), weight, targets.flatten())
    return _HeadAndLoss.apply(*flat, product_dtype(hidden), softcap)


class _HeadAndLoss(torch.autograd.Function):
    """Computes both gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx,  # noqa: ANN001
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> Tensor:
        loss, hidden_gradient, weight_gradient = _loss_and_gradients(
            hidden, weight, targets, dtype, softcap
        )
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return loss / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor):  # type: ignore[override] # noqa: ANN001, ANN205
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradients[0] / len(hidden_gradient)
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None, None


@torch.library.custom_op("ratchet::loss_and_gradients", mutates_args=())
def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The *summed* loss of all rows, and its gradients with respect to states and matrix.

    Products are computed in `dtype`. A gradient has the type of the tensor that it belongs to.
    Shapes: hidden (N, C), weight (V, C), targets (N) -> (), (N, C), (V, C).
    """
    # Summed, not averaged: the backward pass then scales once, by mean and micro-steps together.
    states, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
    rows = len(states)
    on_cpu = hidden.device.type == "cpu"
    chunk = equal_chunk(rows, len(matrix) * dtype.itemsize) if on_cpu else rows
    losses = torch.empty(rows, dtype=torch.float32, device=hidden.device)
    hidden_gradient = torch.empty_like(states)
    weight_gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    logits = states.new_empty(chunk, len(matrix))
    overwrite = softmax_minus_one_hot_ if on_cpu else softmax_minus_one_hot_on_cuda_
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        block = torch.mm(states[part], matrix.T, out=logits[: part.stop - first])  # (chunk, V)
        losses[part] = overwrite(block, targets[part], softcap)
        torch.mm(block, matrix, out=hidden_gradient[part])  # (chunk, V) -> (chunk, C)
        _add_product(weight_gradient, block, states[part], fresh=first == 0)  # -> (V, C)
    return losses.sum(), hidden_gradient.to(hidden.dtype), weight_gradient


@_loss_and_gradients.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, softcap: float | None
) -> tuple[Tensor, ...]:
    loss = hidden.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden), torch.empty_like(weight)


def equal_chunk(rows: int, row_bytes: int) -> int:
    """Rows of one chunk, so that all chunks are of about the same size."""
    # A short last chunk would read and write complete matrices for little work: equal chunks took
    # 3 % less CPU time than fixed ones with a tail (bench/LOG.md, 2026-11-21).
    most = max(1, CPU_CHUNK_BYTES // row_bytes)
    return -(-rows // -(-rows // most))


def _add_product(total: Tensor, block: Tensor, states: Tensor, fresh: bool) -> None:
    """total = block.T @ states if `fresh`, else total += block.T @ states; sums in total's type."""
    if total.dtype != block.dtype:
        product = torch.mm(block.T, states)
        _ = total.copy_(product) if fresh else total.add_(product)
    elif fresh:
        torch.mm(block.T, states, out=total)
    else:
        total.addmm_(block.T, states)


def softmax_minus_one_hot_(logits: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Overwrite `logits` by softmax - one_hot(target); returns the loss of each row.

    With a soft-cap c, softmax and loss are those of z = c tanh(x / c), and the gradient with
    respect to x is (softmax - one_hot(target)) (1 - (z / c)^2).

    Shapes: logits (N, V), targets (N) -> (N) float32.
    """
    # A few rows at a time stay in the cache. log p_max = x_max - logsumexp gives the logsumexp
    # without another pass of exponentials.
    losses = torch.empty(len(logits), dtype=torch.float32)
    together = max(8, CACHED_BYTES // (4 * logits.size(1)))
    for first in range(0, len(logits), together):
        part = slice(first, first + together)
        rows, places = logits[part], targets[part].long()[:, None]
        wide = rows.float()  # `rows` itself, without a copy, if that is float32
        half = None
        if softcap is not None:
            # With s = sigmoid(2x / c), z = 2cs - c and 1 - (z / c)^2 = 4s(1 - s). A sigmoid takes
            # a fifth of a tanh's time (bench/LOG.md), and a shift by c changes no softmax.
            half = wide.mul_(2 / softcap).sigmoid()
            torch.mul(half, 2 * softcap, out=wide)
        wanted = wide.gather(1, places)
        largest = wide.amax(1, keepdim=True)
        torch.softmax(wide, 1, out=wide)
        losses[part] = (largest - wanted - wide.amax(1, keepdim=True).log())[:, 0]
        wide.scatter_add_(1, places, wide.new_full((), -1.0).expand_as(places))
        if half is not None:
            wide.mul_(half.addcmul_(half, half, value=-1)).mul_(4)
        if wide is not rows:
            rows.copy_(wide)
    return losses
