"""Runs the CUDA kernel of the loss in Triton's interpreter, and compares it with float64.

Writes JSON to standard output: for each group of cases, what is wrong with each case, or "".
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined

import torch
from torch.nn import functional as F

from model.fused_loss.loss_kernel import softmax_minus_one_hot_on_cuda_

INF, NAN = float("inf"), float("nan")
GPT2, BLOCK = 50304, 8192  # ids of the network, logits of a block
SIZES = ((2, GPT2), (2, BLOCK), (2, BLOCK + 1), (2, BLOCK - 1), (4, 128), (2, 1), (3, 384))
TYPES = (torch.float32, torch.bfloat16)
# What is put into the logits of a row of 300, whose target is 70: places and value.
NOT_FINITE = {
    "nothing": [],
    "one NaN": [(slice(7, 8), NAN)],
    "one +inf": [(slice(7, 8), INF)],
    "one -inf": [(slice(7, 8), -INF)],
    "-inf at the target": [(slice(70, 71), -INF)],
    "a first block of -inf": [(slice(0, 64), -INF)],
    "a first and a last block of -inf": [(slice(0, 64), -INF), (slice(256, 300), -INF)],
    "a middle block of -inf, with the target": [(slice(64, 128), -INF)],
    "nothing but -inf": [(slice(None), -INF)],
    "a first block of -inf, then NaN": [(slice(0, 64), -INF), (slice(64, 65), NAN)],
    "a first block of the least number": [(slice(0, 64), torch.finfo(torch.float32).min)],
}


def exact(logits, targets, cap):
    """Loss of each row and gradient of their sum, in float64."""
    x = logits.detach().double().requires_grad_()
    z = x if cap is None else cap * torch.tanh(x / cap)
    losses = F.cross_entropy(z, targets, reduction="none")
    losses.sum().backward()
    return losses.detach(), x.grad


def compare(logits, targets, cap=None, scale=1.0, **block):
    """How the kernel differs from float64 in `logits`, which it overwrites; "" if it does not."""
    losses, gradient = exact(logits, targets, cap)
    found = softmax_minus_one_hot_on_cuda_(logits, targets, cap, **block)
    # The interpreter cuts a float32 off to bfloat16; the GPU rounds, with half the error.
    rounding = 6e-6 if logits.dtype == torch.float32 else 2**-7
    try:
        close = {"equal_nan": True, "check_dtype": False}
        torch.testing.assert_close(found, losses, rtol=2e-6, atol=2e-6 * scale, **close)
        torch.testing.assert_close(logits, gradient, rtol=rounding, atol=1e-6 * scale, **close)
    except AssertionError as error:
        return str(error)
    return ""


def ordinary():
    """Sizes about a block, scales, types, with and without a soft-cap; all rows are strided."""
    for rows, vocabulary in SIZES:
        for scale, cap in ((1, None), (1000, None), (30, 15.0)):
            for dtype in TYPES:
                torch.manual_seed(0)
                wide = (scale * torch.randn(rows, vocabulary + 16)).to(dtype)
                tail = wide[:, vocabulary:].clone()
                targets = torch.randint(0, vocabulary, (rows,))
                targets[0] = vocabulary - 1
                wrong = compare(wide[:, :vocabulary], targets, cap, scale)
                if not torch.equal(wide[:, vocabulary:], tail):
                    wrong = "it wrote beyond the row"
                yield f"{rows} x {vocabulary} {dtype} times {scale} cap {cap}", wrong


def not_finite():
    """Each kind in a row of its own: what is in a row changes no other."""
    for dtype in TYPES:
        for cap in (None, 3):
            torch.manual_seed(1)
            logits = (8 * torch.randn(len(NOT_FINITE), 300)).to(dtype)
            for row, changes in zip(logits, NOT_FINITE.values(), strict=True):
                for places, value in changes:
                    row[places] = value
            targets = torch.full((len(logits),), 70)
            wrong = compare(logits, targets, cap, block=64)
            yield f"{dtype} cap {cap}: {', '.join(NOT_FINITE)}", wrong


def outside():
    """A target outside of the row: NaN for that row, and nothing is read elsewhere."""
    for target in (-1, 300, 2**40, -(2**40)):
        for cap in (None, 15.0):
            torch.manual_seed(2)
            logits = torch.randn(3, 300)
            soft = logits.double() if cap is None else cap * torch.tanh(logits.double() / cap)
            softmax = torch.softmax(soft[1], 0) * (1 if cap is None else 1 - (soft[1] / cap) ** 2)
            kept = logits[::2].clone()
            losses = softmax_minus_one_hot_on_cuda_(logits, torch.tensor([5, target, 299]), cap, 64)
            right, gradient = exact(kept, torch.tensor([5, 299]), cap)
            near = torch.allclose(losses[::2].double(), right, rtol=1e-6)
            near &= torch.allclose(logits[::2].double(), gradient, atol=1e-6)
            near &= torch.allclose(logits[1].double(), softmax, atol=1e-6)
            wrong = "" if near and losses.isnan().tolist() == [False, True, False] else str(losses)
            yield f"target {target} of 300 cap {cap}", wrong


if __name__ == "__main__":
    groups = (ordinary, not_finite, outside)
    sys.stdout.write(json.dumps({group.__name__: dict(group()) for group in groups}))
