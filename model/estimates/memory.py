"""Bytes that one rank's training step needs, predicted from the shape.

The peak is the largest of four moments of a step, each the sum of the tensors that exist then.
Counted are the bytes of tensors, as `torch.cuda.max_memory_allocated` counts them, and a constant
for the runtime. bench/memory.py compares the prediction with measurements.
Letters: L layers, C width, W hidden width, V vocabulary rows, H heads, N parameters, n tokens of a
micro-batch, s bytes of an element of the matrix products (2 in bfloat16, 4 in float32).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.config import GPTConfig
from model.estimates.documents import document_bytes
from model.estimates.dropout_memory import dropout_bytes
from model.estimates.parameters import block_matrix_elements, count_parameters
from model.estimates.recomputed_memory import recomputed_block_bytes
from model.estimates.reduction_memory import exchange_bytes, sums_apart
from model.estimates.updates import UpdateCost, adamw_update
from model.fused_loss.head_and_loss import equal_chunk

_MIB = 2**20
_FLOAT = 4  # weights, gradients and moments are float32
# Memory of the process besides tensors, by device and whether it compiles. CPU: measured
# (bench/results/memory.json); compilation happens inside the process. CUDA: not measured yet; two
# cuBLAS workspaces of 32 MiB (Hopper, aten/src/ATen/cuda/CublasHandlePool.cpp in torch).
_RUNTIME = {
    ("cpu", False): 128 * _MIB,
    ("cpu", True): 160 * _MIB,
    ("cuda", False): 64 * _MIB,
    ("cuda", True): 64 * _MIB,
}
# The same for a network of a few thousand parameters, on the CPU. Between the two the memory grows
# with the tensors (bench/LOG.md, "memory of tiny networks").
_LEAST_RUNTIME = {("cpu", False): 26 * _MIB}
# The share of a device's memory that a *predicted* peak may take. The rest is for what the
# prediction leaves out: CUDA context, NCCL, gaps of the allocator. TORCH_SHARE in parallel/ranks.py
# is something else, the allocator's hard limit; it must be larger (tests/parallel checks it).
# Not measured yet: bench/GPU_TODO.md.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class StepShape:
    """The settings of one rank's step that its memory depends on."""

    micro_batch: int
    """Windows of one forward pass."""
    dtype: torch.dtype = torch.bfloat16
    """Arithmetic of the matrix products: bfloat16 (autocast) or float32."""
    compiled: bool = True
    """Whether network and loss go through torch.compile."""
    micro_steps: int = 2
    """Micro-steps of one step on one rank."""
    world_size: int = 1
    """Number of ranks; with several, there is memory for the exchange of gradients."""
    reduction: Literal["ddp", "tree"] = "ddp"
    """How gradients are summed over micro-batches and ranks."""
    device: str = "cuda"
    """cuda or cpu."""
    fused_loss: bool = False
    """Whether head and loss are one operator (model/fused_loss/)."""
    recompute: bool = False
    """Whether each block keeps only its input and computes the rest again."""
    residual_bfloat16: bool = False
    """Whether the residual stream is bfloat16."""
    mask_documents: bool = False
    """Whether attention stays within documents."""
    update: UpdateCost | None = None
    """What the optimizer's update takes; None: AdamW's."""

    @property
    def accumulates(self) -> bool:
        """Whether a step has more than one micro-step."""
        return self.micro_steps > 1

    @property
    def element(self) -> int:
        """Bytes of one element of the matrix products (s)."""
        return 2 if self.dtype == torch.bfloat16 else _FLOAT

    @property
    def stream(self) -> int:
        """Bytes of one element of the residual stream."""
        return 2 if self.residual_bfloat16 else _FLOAT


@dataclass(frozen=True)
class Memory:
    """Bytes by part. `peak` is less than their sum, because they do not all exist at once."""

    weights: int
    optimizer: int
    """What the optimizer keeps between updates."""
    gradients: int
    buckets: int
    """For the exchange of gradients; DDP's buckets are the gradients if there is one micro-step."""
    partial_sums: int
    """Sums of earlier micro-steps' gradients that --reduction tree keeps apart."""
    weight_copies: int
    """Matrices cast to bfloat16, kept from the forward to the backward pass."""
    layer: int
    """Activations that one block keeps for the backward pass."""
    layers: int
    """Activations that all blocks keep for the backward pass."""
    documents: int
    """What all blocks share if attention stays within documents: mask, positions, rotations."""
    final: int
    """Activations kept between the last block and the logits, and the ids."""
    logits: int
    """Logits, the tensors that the loss makes of them, and their gradient, at their largest."""
    update: int
    """Tensors that exist only during the optimizer's update."""
    runtime: int
    """Memory of the process besides tensors."""
    host_copy: int
    """In host memory, from the first checkpoint on: the copy of the state that is written."""
    peak_moment: str
    """The moment of the step at which the peak is reached."""
    peak: int


def predict_memory(config: GPTConfig, step: StepShape) -> Memory:
    """Predict the bytes of one rank's step by part, and the peak."""
    n = step.micro_batch * config.context_length
    weights = _FLOAT * count_parameters(config).total
    update = step.update or adamw_update(config)
    optimizer = update.state_bytes
    buckets = exchange_bytes(weights, step.world_size, step.reduction)
    waiting = weights * sums_apart(step.micro_steps) if step.reduction == "tree" else 0
    copies = _weight_copy_bytes(config, step)
    layer = n * block_activation_bytes(config, step)
    layers = config.n_layer * layer
    again = freed = 0  # of the backward pass: one block's activations; other blocks' cast matrices
    if step.recompute:
        again, freed = layer, copies - _weight_copy_bytes(replace(config, n_layer=1), step)
        layers = again + config.n_layer * n * recomputed_block_bytes(config, step.stream)
    final = n * _final_activation_bytes(config, step)
    documents = 0
    if step.mask_documents:
        documents = n * document_bytes(config, step.element, step.device, step.compiled)
    logits = _loss_bytes(config, step)

    # Sums of tensors that exist at the same time.
    always = weights + optimizer + buckets
    earlier = weights if step.accumulates else 0  # gradients of earlier micro-steps
    copied = step.accumulates or step.reduction == "tree"
    gradients = weights if copied or not buckets else 0
    updated = 0 if buckets and step.reduction == "tree" else gradients  # tree: parts of one piece
    forward = always + waiting + earlier + copies + layers - again + documents + final
    moments = {
        "loss": forward + logits,
        "backward of the last block": forward
        + (again - freed)
        + _head_gradient_bytes(config, step)
        + n * _mlp_backward_bytes(config, step),
        "end of the backward pass": always + waiting + _final_gradient_bytes(config, step),
        "update": always + updated + update.scratch_bytes,
    }
    moment = max(moments, key=lambda name: moments[name])
    runtime = _runtime_bytes(step, moments[moment])
    return Memory(
        weights=weights,
        optimizer=optimizer,
        gradients=gradients,
        buckets=buckets,
        partial_sums=waiting,
        weight_copies=copies,
        layer=layer,
        layers=layers,
        documents=documents,
        final=final,
        logits=logits,
        update=update.scratch_bytes,
        runtime=runtime,
        host_copy=weights + optimizer,
        peak_moment=moment,
        peak=moments[moment] + runtime,
    )


def block_activation_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes for each token that one block keeps for the backward pass; a test asks autograd."""
    C, H, W, s = config.n_embd, config.n_head, config.hidden_width, step.element
    norms = 2 * _norm_bytes(config, step)
    # New query and key; value is a view of the qkv.
    changed = 2 * C if config.position == "rope" or config.qk_norm else 0
    attention = s * (C + 3 * C + C + changed) + _FLOAT * H  # norm, qkv, output; logsumexp
    if config.qk_norm:
        attention += 2 * _query_norm_bytes(config, step)
    hidden, inputs = (4 * W, C) if config.mlp == "swiglu" else (2 * W, C)
    if config.mlp == "swiglu" and step.compiled:
        hidden = 3 * W  # the compiler recomputes the result of SiLU
    elif config.mlp == "swiglu" and s < _FLOAT:
        inputs = 2 * C  # autocast casts the norm's output once for each matrix
    shortcuts = step.stream * C + s * C if config.shortcuts else 0  # block's input, mixed values
    masks = dropout_bytes(config, s, step.device) if config.dropout else 0
    return norms + attention + s * (inputs + hidden) + shortcuts + masks


def _norm_bytes(config: GPTConfig, step: StepShape, shared: bool = True) -> int:
    """Bytes for each token kept by a norm: its input and the statistics of its row.

    `shared`: whether what follows keeps the norm's result, which is not counted here.
    """
    C = config.n_embd
    if config.norm == "layernorm":
        return step.stream * C + (_FLOAT if step.compiled else 2 * _FLOAT)
    if step.compiled or step.device == "cuda":
        return step.stream * C + _FLOAT
    if not config.norm_weight:  # model/plain_rms_norm.py keeps its result instead
        return _FLOAT + (0 if shared and step.element == _FLOAT else step.stream * C)
    return 2 * _FLOAT * C + _FLOAT  # eager RMSNorm on the CPU keeps x and x / rms


def _query_norm_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes for each token kept by the norm of all queries, besides its result."""
    statistics = _FLOAT * config.n_head
    if step.device == "cpu" and not step.compiled:  # bfloat16 is computed on a float32 copy
        return statistics + (0 if step.element == _FLOAT else _FLOAT * config.n_embd)
    rotated = step.element * config.n_embd if config.position == "rope" else 0
    return statistics + rotated


def _final_activation_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes for each token around the blocks: norms, the head's input or gradient, and two ids.

    The ids are int64.
    """
    element = _FLOAT if step.fused_loss else step.element
    last = _norm_bytes(config, step, shared=not step.fused_loss) + element * config.n_embd
    first = _norm_bytes(config, step, shared=False) if config.embedding_norm else 0
    embedded = step.stream * config.n_embd if config.shortcuts else 0
    return first + embedded + last + 2 * 8


def _loss_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes of logits and loss at their largest moment.

    Eager: three float32 tensors, namely the log-softmax, its gradient, and the gradient of the
    logits; a soft-cap keeps its tangents too. Compiled: the logits, which their gradient
    overwrites. Fused: one chunk of the logits (on CUDA all), the head's gradient, and in bfloat16
    the casts of matrix, states and a product.
    """
    rows = step.micro_batch * config.context_length
    row = config.padded_vocab_size
    if not step.fused_loss:
        eager = _FLOAT * (3 if config.logit_softcap is None else 4)
        return rows * row * (step.element if step.compiled else eager)
    head = config.n_embd * row
    casts = 0 if step.element == _FLOAT else step.element * (2 * head + rows * config.n_embd)
    if step.device == "cpu":
        rows = equal_chunk(rows, row * step.element)
    return rows * row * step.element + _FLOAT * head + casts


def _runtime_bytes(step: StepShape, tensors: int) -> int:
    """Bytes of the process besides the tensors of the peak. On the CPU they grow with those."""
    most = _RUNTIME[step.device, step.compiled]
    least = _LEAST_RUNTIME.get((step.device, step.compiled), most)
    return min(most, least + tensors // 3)


def _weight_copy_bytes(config: GPTConfig, step: StepShape) -> int:
    if step.element == _FLOAT:
        return 0
    head = 0 if step.fused_loss else config.n_embd * config.padded_vocab_size
    return step.element * (config.n_layer * block_matrix_elements(config) + head)


def _mlp_backward_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes for each token of the gradients inside a feed-forward layer's backward pass."""
    hidden = 3 if config.mlp == "swiglu" else 2
    return step.stream * config.n_embd + step.element * (
        config.n_embd + hidden * config.hidden_width
    )


def _head_gradient_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes of the gradient of the head's matrix; if tied, it is kept until the embedding's."""
    element = step.element if step.compiled and not step.fused_loss else _FLOAT
    return element * config.n_embd * config.padded_vocab_size


def _final_gradient_bytes(config: GPTConfig, step: StepShape) -> int:
    """Bytes of all gradients when the embedding's, the last one, is added to them."""
    gradients = _FLOAT * count_parameters(config).total
    in_buckets = step.world_size > 1 and step.reduction == "ddp"
    separate = step.accumulates or in_buckets  # a new gradient is added or copied
    head = _head_gradient_bytes(config, step) if config.tied else 0
    if step.compiled:  # the graph returns all gradients at once
        return gradients + (gradients if step.accumulates else 0) + head
    embedding = _FLOAT * config.n_embd * config.padded_vocab_size
    kept = gradients if step.accumulates or not in_buckets else 0
    return kept + (embedding if config.tied or separate else 0) + (head if separate else 0)
