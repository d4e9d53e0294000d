"""Bytes that dropout adds to what a block keeps for the backward pass."""

from model.config import GPTConfig

# For each weight of attention where no kernel of attention has dropout, which is the CPU: softmax,
# what is dropped of it, and the rest, by the bytes of an element. A test asks autograd.
_ATTENTION_WEIGHT = {4: 12, 2: 14}


def dropout_bytes(config: GPTConfig, element: int, device: str) -> int:
    """Bytes for each token: one for each number of the block's two outputs, and attention's.

    `element`: bytes of an element of the matrix products.
    """
    masks = 2 * config.n_embd
    if device == "cuda":
        return masks
    return masks + _ATTENTION_WEIGHT[element] * config.n_head * config.context_length
