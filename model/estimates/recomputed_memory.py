"""Bytes that a block keeps if the backward pass computes it again (`--recompute blocks`)."""

from model.config import GPTConfig


def recomputed_block_bytes(config: GPTConfig, stream: int) -> int:
    """Bytes for each token: the block's input, and with shortcuts the stream that it is made of.

    `stream`: bytes of an element of the residual stream.
    """
    return stream * config.n_embd * (2 if config.shortcuts else 1)
