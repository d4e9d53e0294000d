"""The same by flex attention, on CUDA: blocks between documents are left out.

Shape letters: B windows, T tokens, H heads, D head width, N blocks of a window.
"""

from importlib import import_module

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.fused_loss.loss_kernel import HAS_TRITON

_BLOCK = 128  # tokens; what flex attention's kernels skip or compute whole
_LEAST_WIDTH = 16  # of a head, for these kernels


def fits_flex(device: str, head_width: int, dropout: float, compiled: bool) -> bool:
    """Whether flex attention, which leaves out the blocks between documents, can make a step.

    Without compilation it would be slower than a mask. It has no dropout.
    """
    return device == "cuda" and compiled and not dropout and head_width >= _LEAST_WIDTH


def uses_flex(
    device: torch.device, head_width: int, dropout: float, compiled: bool, world_size: int
) -> bool:
    """Whether a step does so here: its kernels are made by Triton."""
    possible = HAS_TRITON and fits_flex(device.type, head_width, dropout, compiled)
    return possible and (world_size == 1 or _ddp_cuts_its_graph())


def _ddp_cuts_its_graph() -> bool:
    """Whether torch can cut a graph with flex attention where DDP's buckets end.

    torch 2.13 can; older versions refuse (https://github.com/pytorch/pytorch/issues/137481).
    """
    cut = import_module("torch._dynamo.backends.distributed").DDPOptimizer.compile_fn
    return "has_higher_order_op" not in cut.__code__.co_names


def document_blocks(positions: Tensor) -> BlockMask:
    """The same for flex attention: which blocks to leave out, mask, or compute whole.

    Documents are in order, so the ends of the blocks say it: nothing of T x T is made.
    Shape: positions in the documents (B, T).
    """
    T, device = positions.size(1), positions.device
    starts = torch.arange(T, device=device) - positions  # (B, T)
    N = -(-T // _BLOCK)
    number = torch.arange(N, device=device)
    first = number * _BLOCK
    last = (first + _BLOCK - 1).clamp(max=T - 1)
    before = number < number[:, None]  # (N, N): queries, keys
    some = (before | (number == number[:, None])) & (last >= starts[:, first, None])  # (B, N, N)
    complete = (last - first == _BLOCK - 1)[:, None]
    whole = before & complete & (first >= starts[:, last, None])

    def attended(window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts[window, query])

    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=_BLOCK,
        mask_mod=attended,
        seq_lengths=(T, T),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and their numbers, then the others'.

    Shapes: (B, N, N) bool -> (B, 1, N), (B, 1, N, N).
    """
    counts = blocks.sum(-1, dtype=torch.int32)
    numbers = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True).int()
    return counts[:, None], numbers[:, None]


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention by flex attention. Shapes: 3 x (B, H, T, D) -> (B, H, T, D)."""
    q, k = q.to(v.dtype), k.to(v.dtype)  # autocast does not reach it
    y = flex_attention(q, k, v, block_mask=mask)
    assert isinstance(y, Tensor)
    return y
