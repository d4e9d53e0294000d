"""train/main.py whose rank 1 has memory for one window at a time, from step 3 on.

Under torchrun: tests/out_of_memory.py WORDS OF train/main.py
"""

import torch

from model.loss import NextTokenLoss
from parallel.ranks import rank_from_environment
from train.main import main

FORWARD_PASSES = 5  # that go well: two to settle the buckets, and three steps


def without_memory(passes: int, windows: int):
    """A forward pass that fails for more than so many windows, once so many passes are done."""
    plain, done = NextTokenLoss.forward, []

    def forward(self, ids, targets):
        done.append(len(ids))
        if len(done) > passes and len(ids) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return plain(self, ids, targets)

    return forward


if __name__ == "__main__":
    if rank_from_environment() == 1:
        NextTokenLoss.forward = without_memory(FORWARD_PASSES, windows=1)
    main()
