"""Data-parallel training by DDP: one replica per rank, gradients exchanged once per step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from parallel.collectives import sum_over_ranks
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
def _gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
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


class DdpReduction:
    """DDP averages the gradients of the ranks; each rank adds its own from left to right."""

    def __init__(
        self, module: nn.Module, ranks: Ranks, compression: Literal["none", "bfloat16"] = "none"
    ) -> None:
        self.module = replicate(module, ranks, compression)
        self.ranks = ranks
        self._loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._last = 0

    def begin(self, micro_batches: int) -> int:
        """Forget what was summed so far; a step of `micro_batches` on this rank follows.

        Returns the number by which each of its losses must be divided: that of this rank's.
        """
        self.module.zero_grad(set_to_none=True)
        self._loss.zero_()
        self._last = micro_batches - 1
        return micro_batches

    def micro_step(self, number: int) -> AbstractContextManager[None]:
        """Must enclose forward and backward pass: gradients are averaged in the last one."""
        return _gradient_sync(self.module, enabled=number == self._last)

    def add(self, loss: Tensor) -> None:
        """The backward pass of the next micro-batch is done. Shape: ()."""
        self._loss += loss

    def finish(self, values: Tensor) -> None:
        """Sum `values` over ranks, in place, with the mean loss of the ranks as the first.

        DDP has averaged the gradients already. Shape: (n,) float64, the first one 0.
        """
        values[0] = self._loss / self.ranks.world_size  # so that the sum over ranks is the mean
        sum_over_ranks(values)
