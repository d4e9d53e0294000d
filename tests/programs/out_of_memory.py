"""train/main.py whose rank 1 has memory for one window at a time from step 3 on.

Under torchrun: tests/programs/out_of_memory.py, then the arguments of train/main.py
"""

import torch

from model.loss import NextTokenLoss
from parallel.ranks import rank_from_environment
from train.main import main

FORWARD_PASSES = 5  # that succeed: two that fix the bucket layout, and three steps


def without_memory(passes: int, windows: int):
    """A forward method that fails for more than `windows` windows after `passes` passes."""
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
