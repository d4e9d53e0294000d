"""Data-parallel training by DDP: one replica per rank, gradients exchanged once per step."""

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
    """Wrap `module` so that its gradients are averaged over ranks. With one rank, return it as is.

    `compression` is the number format in which gradients are exchanged.
    """
    if ranks.world_size == 1:
        return module
    # torch cuts a compiled module where DDP's buckets end, so that a bucket is exchanged while the
    # backward pass continues. It does so only if the *first* call goes through DDP. The graph of an
    # earlier call is not cut and would be used again, without any overlap (bench/LOG.md).
    torch.compiler.reset()
    devices = [ranks.device] if ranks.device.type == "cuda" else None
    replica = DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)
    if compression == "bfloat16":
        replica.register_comm_hook(None, _mean_in_bfloat16)
    return replica


def _mean_in_bfloat16(_: None, bucket: dist.GradBucket) -> Future[torch.Tensor]:  # type: ignore[reportPrivateImportUsage]
    """DDP hook that exchanges gradients in bfloat16: half the bytes, but rounded.

    The sum over ranks is also in bfloat16. Every rank gets the same bits.
    """
    # torch's own bf16_compress_hook does not work with gloo, and it rounds before it divides.
    gradients = bucket.buffer()
    narrow = gradients.div_(dist.get_world_size()).bfloat16()
    work = dist.all_reduce(narrow, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: gradients.copy_(done.value()[0]))


@contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Average gradients over ranks inside the block only if `enabled`.

    Must enclose forward *and* backward: DDP reads the flag in the forward pass
    (https://github.com/karpathy/build-nanogpt/pull/30).
    """
    if enabled or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def fix_bucket_layout(module: nn.Module, tokens: torch.Tensor) -> None:
    """Run two dummy backward passes, after which DDP's bucket layout does not change any more.

    The gradients are discarded.
    Shapes: tokens (B, T + 1) integers.
    """
    # DDP rebuilds its gradient buckets after the first backward pass. A resumed run on four or more
    # ranks would otherwise add gradients in another order than the uninterrupted run, and so differ
    # in the last bits. torch fixed a test of its own for it:
    # https://github.com/pytorch/pytorch/pull/197890
    if not isinstance(module, DistributedDataParallel):
        return
    for _ in range(2):
        # Sliced as the loader does it: with other strides torch.compile would compile once more.
        module(tokens[:, :-1], tokens[:, 1:]).backward()
        module.zero_grad(set_to_none=True)
