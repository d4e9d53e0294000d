"""Data-parallel training: one replica a rank, gradients summed on the last micro-step only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from parallel.ranks import Ranks


def replicate(
    module: nn.Module, ranks: Ranks, compression: Literal["none", "bfloat16"] = "none"
) -> nn.Module:
    """`module` with its gradients averaged over ranks; itself where there is one rank.

    A module that goes through torch.compile is cut where DDP's buckets end, so that a bucket
    travels while the backward pass goes on: torch sees to that where the *first* call is DDP's.
    `compression` is the type in which they travel.
    """
    if ranks.world_size == 1:
        return module
    torch.compiler.reset()  # a graph from a call outside of DDP is whole and would be taken again
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    replica = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
    if compression == "bfloat16":
        replica.register_comm_hook(None, mean_in_bfloat16)
    return replica


def mean_in_bfloat16(_: None, bucket: dist.GradBucket) -> Future[torch.Tensor]:  # type: ignore[reportPrivateImportUsage]
    """DDP's hook for half the bytes: gradients are rounded, summed over ranks and widened again.

    The sum is bfloat16's too (gloo's, or what NCCL makes of it), the same bits on every rank.
    torch's own bf16_compress_hook refuses gloo, and rounds before it divides.
    """
    gradients = bucket.buffer()
    narrow = gradients.div_(dist.get_world_size()).bfloat16()
    work = dist.all_reduce(narrow, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: gradients.copy_(done.value()[0]))


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


def fix_bucket_layout(module: nn.Module, tokens: torch.Tensor) -> None:
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
