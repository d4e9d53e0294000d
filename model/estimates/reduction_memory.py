"""Bytes that the sum of gradients over micro-batches and ranks needs beside the gradients."""

from typing import Literal


def exchange_bytes(gradients: int, world_size: int, reduction: Literal["ddp", "tree"]) -> int:
    """Bytes that several ranks keep to exchange `gradients` bytes.

    ddp: its buckets. tree: all gradients in one piece, and half as much to receive.
    """
    if world_size == 1:
        return 0
    return gradients if reduction == "ddp" else gradients + gradients // 2


def sums_apart(micro_steps: int) -> int:
    """How many sums of gradients wait, at most, while a rank adds up its part of the tree.

    One for each level above the runs that the backward pass adds by itself: the odd part of
    `micro_steps`, or a pair if that is 1. A test compares with parallel/tree_reduction.py.
    """
    pairs = micro_steps & -micro_steps  # the largest power of two that divides
    levels = pairs.bit_length() - 1
    return levels if pairs < micro_steps else max(levels - 1, 0)
