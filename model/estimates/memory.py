"""Bytes that one rank's training step needs, from the shape alone; checked by bench/memory.py.

The peak is the largest of four moments of a step, each a sum of what is alive then. Bytes are what
the tensors hold, as `torch.cuda.max_memory_allocated` counts them, and a constant for the runtime.
Letters: L layers, C width, W hidden width, V vocabulary rows, H heads, N parameters, n tokens of a
micro-batch, s bytes of an element of the matrix products (2 in bfloat16, 4 in float32).
"""

from dataclasses import dataclass, replace

import torch

from model.config import GPTConfig
from model.estimates.parameters import block_matrix_elements, count_parameters
from model.fused_loss import equal_chunk

MIB = 2**20
FLOAT = 4  # weights, gradients and moments are float32
# What the process holds besides tensors. CPU: measured (bench/results/memory.json), compilation
# happens inside the process. CUDA, not measured yet: cuBLAS's two workspaces of 32 MiB (Hopper,
# torch's aten/src/ATen/cuda/CublasHandlePool.cpp).
RUNTIME = {
    ("cpu", False): 128 * MIB,
    ("cpu", True): 160 * MIB,
    ("cuda", False): 64 * MIB,
    ("cuda", True): 64 * MIB,
}
# Of a GPU's memory; the rest is for the CUDA context, NCCL and the allocator's gaps. Not measured
# yet: bench/GPU_TODO.md.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class StepShape:
    """How one rank's step runs, as far as its memory depends on it."""

    micro_batch: int
    """Windows of one forward pass."""
    dtype: torch.dtype = torch.bfloat16
    """Arithmetic of the matrix products: bfloat16 (autocast) or float32."""
    compiled: bool = True
    """Whether network and loss go through torch.compile."""
    accumulates: bool = True
    """Whether a step has more than one micro-step."""
    world_size: int = 1
    """Ranks; with several, DDP holds the gradients in buckets."""
    device: str = "cuda"
    """cuda or cpu."""
    fused_loss: bool = False
    """Whether head and loss are one operator (model/fused_loss.py)."""
    recompute: bool = False
    """Whether each block keeps only its input and computes the rest again."""
    residual_bfloat16: bool = False
    """Whether the residual stream is bfloat16."""

    @property
    def element(self) -> int:
        """Bytes of one element of the matrix products (s)."""
        return 2 if self.dtype == torch.bfloat16 else FLOAT

    @property
    def stream(self) -> int:
        """Bytes of one element of the residual stream."""
        return 2 if self.residual_bfloat16 else FLOAT


@dataclass(frozen=True)
class Memory:
    """Bytes by part; `peak` is less than their sum, for they are not all alive at once."""

    weights: int
    optimizer: int
    gradients: int
    buckets: int
    """DDP's; with one micro-step a rank the gradients live in them."""
    weight_copies: int
    """Matrices cast to bfloat16, kept from the forward to the backward pass."""
    layer: int
    """Activations that one block keeps for the backward pass."""
    layers: int
    """The same of all blocks."""
    final: int
    """Kept between the last block and the logits, and the ids."""
    logits: int
    """Logits, what the loss makes of them and their gradient, at their largest moment."""
    runtime: int
    """What the process holds besides tensors."""
    host_copy: int
    """In host memory, from the first checkpoint on: the state while it is being written."""
    peak_moment: str
    """When the peak is reached."""
    peak: int


def predict_memory(config: GPTConfig, step: StepShape) -> Memory:
    """Bytes of one rank's step by part, and their peak."""
    n = step.micro_batch * config.context_length
    weights = FLOAT * count_parameters(config).total
    optimizer = 2 * weights
    buckets = weights if step.world_size > 1 else 0
    copies = _weight_copies(config, step)
    layer = n * block_activation_bytes(config, step)
    layers = config.n_layer * layer
    if step.recompute:
        layers = config.n_layer * n * step.stream * config.n_embd + layer
    final = n * final_activation_bytes(config, step)
    logits = loss_bytes(config, step)
    runtime = RUNTIME[step.device, step.compiled]

    always = weights + optimizer + buckets + runtime
    earlier = weights if step.accumulates else 0  # gradients of earlier micro-steps
    forward = always + earlier + copies + layers + final
    moments = {
        "loss": forward + logits,
        "backward of the last block": forward
        + _head_gradient(config, step)
        + n * _block(config, step),
        "end of the backward pass": always + _gradients_at_the_end(config, step),
    }
    moment = max(moments, key=lambda name: moments[name])
    return Memory(
        weights=weights,
        optimizer=optimizer,
        gradients=weights if step.accumulates or not buckets else 0,
        buckets=buckets,
        weight_copies=copies,
        layer=layer,
        layers=layers,
        final=final,
        logits=logits,
        runtime=runtime,
        host_copy=weights + optimizer,
        peak_moment=moment,
        peak=moments[moment],
    )


def largest_micro_batch(
    config: GPTConfig, share: int, memory_bytes: int, step: StepShape | None = None
) -> int:
    """The largest power of two that divides a rank's `share` of windows and is said to fit.

    `memory_bytes` is what the device has, of which USABLE_SHARE counts; `step` says how the step
    runs, its micro_batch and accumulates are not read.
    Raises: ValueError if not even one window fits.
    """
    like = step or StepShape(1)
    size, needed = share & -share, 0  # the largest power of two that divides
    while size >= 1:
        tried = replace(like, micro_batch=size, accumulates=size < share)
        found = predict_memory(config, tried)
        needed = found.peak + (found.host_copy if like.device == "cpu" else 0)
        if needed <= USABLE_SHARE * memory_bytes:
            return size
        size //= 2
    raise ValueError(
        f"one window of context_length={config.context_length} needs {needed / 2**30:.1f} GiB, the "
        f"device has {memory_bytes / 2**30:.1f} GiB of which {USABLE_SHARE:.0%} are used; "
        "take a smaller model, a shorter context or a larger device"
    )


def block_activation_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes a token that one block keeps for the backward pass; checked against autograd."""
    C, H, W, s = config.n_embd, config.n_head, config.hidden_width, step.element
    norms = 2 * _norm_bytes(config, step)
    # Rotated query and key (value is a view of the qkv), and the output in another layout.
    rope = 3 * C if config.position == "rope" else 0
    attention = s * (C + 3 * C + C + rope) + FLOAT * H  # norm, qkv, output; softmax's logsumexp
    hidden, inputs = (2 * W, C) if config.mlp == "gelu" else (4 * W, C)
    if config.mlp == "swiglu" and step.compiled:
        hidden = 3 * W  # SiLU's result is computed again
    elif config.mlp == "swiglu" and s < FLOAT:
        inputs = 2 * C  # autocast casts the norm's output for either matrix
    return norms + attention + s * (inputs + hidden)


def _norm_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes a token kept by a norm: its input (or normalised input) and its rows' statistics."""
    C = config.n_embd
    if config.norm == "layernorm":
        return step.stream * C + (FLOAT if step.compiled else 2 * FLOAT)
    if step.compiled or step.device == "cuda":
        return step.stream * C + FLOAT
    return 2 * FLOAT * C + FLOAT  # x and x / rms are both kept


def final_activation_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes a token kept by the last norm, of its output or its gradient, and ids as int64."""
    element = FLOAT if step.fused_loss else step.element
    return _norm_bytes(config, step) + element * config.n_embd + 2 * 8


def loss_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes of logits and loss at their largest moment.

    Eager: in float32 the kept log-softmax, the gradient that reaches it and the one that leaves it.
    Compiled: the logits, over which their gradient is written. Fused: that of a chunk of them (all,
    on CUDA), the head's gradient, and in bfloat16 casts of matrix, states and a product.
    """
    rows = step.micro_batch * config.context_length
    row = config.padded_vocab_size
    if not step.fused_loss:
        return rows * row * (step.element if step.compiled else 3 * FLOAT)
    head = config.n_embd * row
    casts = 0 if step.element == FLOAT else step.element * (2 * head + rows * config.n_embd)
    if step.device == "cpu":
        rows = equal_chunk(rows, row * step.element)
    return rows * row * step.element + FLOAT * head + casts


def _weight_copies(config: GPTConfig, step: StepShape) -> int:
    if step.element == FLOAT:
        return 0
    head = 0 if step.fused_loss else config.n_embd * config.padded_vocab_size
    return step.element * (config.n_layer * block_matrix_elements(config) + head)


def _block(config: GPTConfig, step: StepShape) -> int:
    """Bytes a token of the gradients alive in a feed-forward layer's backward pass."""
    hidden = 2 if config.mlp == "gelu" else 3
    return step.stream * config.n_embd + step.element * (
        config.n_embd + hidden * config.hidden_width
    )


def _head_gradient(config: GPTConfig, step: StepShape) -> int:
    """The gradient of the head's matrix; a tied one waits for the embedding's to the very end."""
    element = step.element if step.compiled and not step.fused_loss else FLOAT
    return element * config.n_embd * config.padded_vocab_size


def _gradients_at_the_end(config: GPTConfig, step: StepShape) -> int:
    """Gradients, and what the embedding's own adds while it is added to them."""
    all_of_them = FLOAT * count_parameters(config).total
    apart = step.accumulates or step.world_size > 1  # new gradients are added or copied
    head = _head_gradient(config, step) if config.tied else 0
    if step.compiled:  # the graph returns all gradients at once
        return all_of_them + (all_of_them if step.accumulates else 0) + head
    embedding = FLOAT * config.n_embd * config.padded_vocab_size
    kept = all_of_them if step.accumulates or step.world_size == 1 else 0
    return kept + (embedding if config.tied or apart else 0) + (head if apart else 0)
