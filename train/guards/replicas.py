"""Whether all ranks hold the same weights and moments, to the bit.

Data-parallel training never notices replicas that drifted apart: each goes on with the same
gradient from other weights. One exact number a tensor and a single reduction tell.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.collectives import sum_over_ranks
from parallel.ranks import Ranks

WORD = 8  # bytes
CPU_CHUNK = 1 << 16  # words in work at once: their factors stay in a core's cache
CUDA_CHUNK = 1 << 22  # few kernels, one temporary of 34 MB
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples spread over all 64 bits


def checksum(tensor: Tensor) -> Tensor:
    """One exact number for all bits of a tensor and their places, on its device. Shape: () int64.

    The sum, modulo 2**64, of every eight bytes times an odd number that belongs to their place: an
    odd factor is invertible, so any change within eight bytes changes the sum. They are taken as
    they lie, so the memory is read once and nothing as large as it is made.
    """
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = CUDA_CHUNK if tensor.is_cuda else CPU_CHUNK
    chunks = [chunk for words in _words(tensor) for chunk in words.split(size)]
    places = torch.arange(max(map(len, chunks)), device=tensor.device)
    factors = (places * _signed(GOLDEN)) | 1  # all sums and products wrap around
    sums = torch.stack([_product_sum(chunk, factors[: len(chunk)]) for chunk in chunks])
    numbers = torch.arange(len(chunks), device=tensor.device)
    return (sums * ((numbers * _signed(GOLDEN)) | 1)).sum()


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's bytes by eight as whole numbers, and the few left over, filled up with zeros."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = len(data) // WORD * WORD
    rest = F.pad(data[whole:], (0, -len(data) % WORD))
    first = data[:whole] if data.storage_offset() % WORD == 0 else data[:whole].clone()
    return first.view(torch.int64), rest.view(torch.int64)


def _product_sum(words: Tensor, factors: Tensor) -> Tensor:
    """The sum of products of whole numbers; CUDA has no kernel that needs no temporary."""
    return (words * factors).sum() if words.is_cuda else torch.dot(words, factors)


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
    """A sentence for each tensor that is not the same on all ranks, and who differs.

    More than half of the ranks are taken to be right. Two ranks, or two halves, cannot tell:
    whoever that was, the last checkpoint is from before.
    """
    found = []
    for name, column in zip(names, table.T.tolist(), strict=True):
        parties = [_ranks_with(value, column) for value, _ in Counter(column).most_common()]
        if len(parties) == 1:
            continue
        if 2 * len(parties[0]) > len(column):
            odd = sorted(rank for party in parties[1:] for rank in party)
            found.append(f"{name} differs on {_named(odd)}")
        else:
            sides = " and ".join(map(_named, parties))
            found.append(f"{name} differs between {sides} (no majority says who is right)")
    return found


def _ranks_with(value: int, column: list[int]) -> list[int]:
    return [rank for rank, other in enumerate(column) if other == value]


def _named(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"


def compare_replicas(tensors: dict[str, Tensor], ranks: Ranks) -> list[str]:
    """What is not the same on all ranks, said alike on each of them; all call this together."""
    if ranks.world_size == 1 or not tensors:
        return []
    return disagreements(gather_checksums(tensors, ranks), list(tensors))
