"""Dropout of a training step: numbers set to zero at random, the others scaled up.

The places are GPT-2's: the embedding, the weights of attention, and what each layer adds to the
residual stream. The random numbers are torch's, whose state is set before every micro-batch, so
nothing is kept between steps: they follow from the seed and from the micro-batch's first window.
A resumed run drops the same numbers, and so does one on another number of ranks that has the same
micro-batch and the same kind of device.
"""

import torch
from torch import Tensor


def dropped(x: Tensor, share: float) -> Tensor:
    """`x` with about `share` of its numbers zero and the others divided by 1 - `share`.

    With a share of 0 it is `x` itself.
    """
    # Unlike F.dropout, which keeps as many bytes as x on the CPU, this keeps one for each number.
    return torch.native_dropout(x, share, True)[0] if share else x


def set_random_state(key: int) -> None:
    """Have the following micro-batch draw the random numbers of this 64-bit key."""
    torch.manual_seed(key)
