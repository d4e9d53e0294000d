"""Data-parallel training: one replica a rank, gradients summed on the last micro-step only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parallel.ranks import Ranks


def replicate(module: nn.Module, ranks: Ranks) -> nn.Module:
    """`module` with its gradients averaged over ranks; itself where there is one rank."""
    if ranks.world_size == 1:
        return module
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Average gradients over ranks inside the block only if `enabled`.

    Wrap forward *and* backward: DDP reads the flag in the forward pass
    (https://github.com/karpathy/build-nanogpt/pull/30).
    """
    if enabled or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def settle_buckets(module: nn.Module, tokens: torch.Tensor) -> None:
    """Two throw-away backward passes, after which DDP's bucket layout never changes again.

    DDP lays its gradient buckets out anew after the first backward pass; with four ranks or more a
    resumed run would otherwise add in another order than the run it continues, and differ in bits.
    Shapes: tokens (B, T + 1) integers, cut as the loader does (other strides would be compiled
    apart). Gradients are dropped.
    """
    if not isinstance(module, DistributedDataParallel):
        return
    for _ in range(2):
        module(tokens[:, :-1], tokens[:, 1:]).backward()
        module.zero_grad(set_to_none=True)
