"""Whether all ranks hold the same weights and moments, to the bit.

Data-parallel training never notices replicas that drifted apart: each goes on with the same
gradient from other weights. One exact number a tensor and a single reduction tell.
"""

from collections import Counter

import torch
from torch import Tensor

from parallel.ranks import Ranks, sum_over_ranks

CPU_CHUNK = 1 << 16  # elements in work at once: temporaries stay in a core's cache
CUDA_CHUNK = 1 << 22  # few kernels, temporaries of 34 MB
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples spread over all 64 bits
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(tensor: Tensor) -> Tensor:
    """One exact number for all bits of a tensor and their places, on its device. Shape: () int64.

    The sum, modulo 2**64, of every element's bits times an odd number that belongs to its place:
    an odd factor is invertible, so any change of a single element changes the sum.
    """
    bits = tensor.detach().contiguous().flatten().view(INTEGERS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    chunk = CUDA_CHUNK if tensor.is_cuda else CPU_CHUNK
    places = torch.arange(min(chunk, bits.numel()), device=tensor.device)
    factors = (places * _signed(GOLDEN)) | 1
    for number, start in enumerate(range(0, bits.numel(), chunk)):
        part = bits[start : start + chunk].long()  # all sums and products wrap around
        total += (part * factors[: part.numel()]).sum() * _signed((number * GOLDEN) | 1)
    return total


def _signed(value: int) -> int:
    """A whole number modulo 2**64, as int64 holds it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def checksums(tensors: dict[str, Tensor], device: torch.device) -> Tensor:
    """The checksum of each tensor, in order. Shape: (tensors,) int64."""
    return torch.stack([checksum(tensor).to(device) for tensor in tensors.values()])


def gather_checksums(tensors: dict[str, Tensor], ranks: Ranks) -> Tensor:
    """Every rank's checksums on every rank, by one reduction. Shape: (ranks, tensors) int64."""
    table = torch.zeros((ranks.world_size, len(tensors)), dtype=torch.int64, device=ranks.device)
    table[ranks.rank] = checksums(tensors, ranks.device)
    return sum_over_ranks(table).cpu()


def disagreements(table: Tensor, names: list[str]) -> list[str]:
    """A sentence for each tensor that is not the same on all ranks, and who differs."""
    found = []
    for name, column in zip(names, table.T.tolist(), strict=True):
        (usual, votes), *others = Counter(column).most_common()
        if not others:
            continue
        odd = [str(rank) for rank, value in enumerate(column) if value != usual]
        who = f"rank {', '.join(odd)}" if 2 * votes > len(column) else "one half of the ranks"
        found.append(f"{name} differs on {who}")
    return found


def compare_replicas(tensors: dict[str, Tensor], ranks: Ranks) -> list[str]:
    """What is not the same on all ranks, said alike on each of them; all call this together."""
    if ranks.world_size == 1 or not tensors:
        return []
    return disagreements(gather_checksums(tensors, ranks), list(tensors))
