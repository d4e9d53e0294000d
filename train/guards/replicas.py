"""Checks that all ranks hold the same weights and optimizer moments, bit for bit.

Data-parallel training itself does not notice replicas that differ: each rank applies the same
gradient to its own weights. Each rank computes one exact checksum per tensor, and a single
reduction gives every rank the checksums of all ranks.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.collectives import sum_over_ranks
from parallel.ranks import Ranks

_WORD = 8  # bytes
# Words per chunk. On the CPU the factors of a chunk stay in a core's cache: 2^15, 2^16, 2^17 and
# 2^18 words took 0.079, 0.060, 0.048 and 0.064 s for 124.4M floats (bench/LOG.md).
CPU_CHUNK = 1 << 16
_CUDA_CHUNK = 1 << 22  # few kernels, one temporary of 34 MB
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: its multiples spread over all 64 bits


def checksum(tensor: Tensor) -> Tensor:
    """An exact checksum of a tensor's bits and their positions, on its device. Shape: () int64."""
    # The sum, modulo 2**64, of each eight-byte word times an odd factor that depends on its
    # position. An odd factor is invertible modulo 2**64, so any change of one word changes the sum.
    # The words are views of the tensor's own memory: it is read once and never copied as a whole.
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=tensor.device)
    size = _CUDA_CHUNK if tensor.is_cuda else CPU_CHUNK
    chunks = [chunk for words in _words(tensor) for chunk in words.split(size)]
    places = torch.arange(max(map(len, chunks)), device=tensor.device)
    factors = (places * _signed(_GOLDEN)) | 1  # int64 overflow wraps around, as wanted here
    sums = torch.stack([_product_sum(chunk, factors[: len(chunk)]) for chunk in chunks])
    numbers = torch.arange(len(chunks), device=tensor.device)
    return (sums * ((numbers * _signed(_GOLDEN)) | 1)).sum()


def _words(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor's bytes as int64 words, and the last bytes padded with zeros to one more word."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = len(data) // _WORD * _WORD
    rest = F.pad(data[whole:], (0, -len(data) % _WORD))
    # A view as int64 needs a start that is aligned to eight bytes.
    first = data[:whole] if data.storage_offset() % _WORD == 0 else data[:whole].clone()
    return first.view(torch.int64), rest.view(torch.int64)


def _product_sum(words: Tensor, factors: Tensor) -> Tensor:
    """The sum of the products, modulo 2**64."""
    # torch.dot needs no temporary, but CUDA has no such kernel for integers.
    return (words * factors).sum() if words.is_cuda else torch.dot(words, factors)


def _signed(value: int) -> int:
    """An integer modulo 2**64 as the int64 with the same bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def checksums(tensors: dict[str, Tensor], device: torch.device) -> Tensor:
    """The checksum of each tensor, in order. Shape: (tensors,) int64."""
    return torch.stack([checksum(tensor).to(device) for tensor in tensors.values()])


def _gather_checksums(tensors: dict[str, Tensor], ranks: Ranks) -> Tensor:
    """The checksums of all ranks, on every rank. Shape: (ranks, tensors) int64."""
    table = torch.zeros((ranks.world_size, len(tensors)), dtype=torch.int64, device=ranks.device)
    table[ranks.rank] = checksums(tensors, ranks.device)
    return sum_over_ranks(table).cpu()


def disagreements(table: Tensor, names: list[str]) -> list[str]:
    """One sentence for each tensor that differs between ranks; it names the ranks.

    If more than half of the ranks agree, the others are named as wrong. Otherwise (always with two
    ranks) all are named: the last checkpoint was written before they differed, whoever is wrong.
    Shapes: table (ranks, tensors).
    """
    found = []
    for name, column in zip(names, table.T.tolist(), strict=True):
        groups = [_ranks_with(value, column) for value, _ in Counter(column).most_common()]
        if len(groups) == 1:
            continue
        if 2 * len(groups[0]) > len(column):
            wrong = sorted(rank for group in groups[1:] for rank in group)
            found.append(f"{name} differs on {_rank_list(wrong)}")
        else:
            sides = " and ".join(map(_rank_list, groups))
            found.append(f"{name} differs between {sides} (without a majority, any may be wrong)")
    return found


def _ranks_with(value: int, column: list[int]) -> list[int]:
    return [rank for rank, other in enumerate(column) if other == value]


def _rank_list(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"


def compare_replicas(tensors: dict[str, Tensor], ranks: Ranks) -> list[str]:
    """The sentences of `disagreements`, the same on every rank. All ranks must call this."""
    if ranks.world_size == 1 or not tensors:
        return []
    return disagreements(_gather_checksums(tensors, ranks), list(tensors))
