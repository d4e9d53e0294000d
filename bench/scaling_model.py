"""What a training step takes on several GPUs: a stated model, from what was measured on one.

An all-reduce by rings moves 2(n-1)/n of the gradient over the slowest link of each rank and costs
a latency for each of its steps. Several nodes: reduce-scatter inside a node, all-reduce of each
GPU's part between nodes over the GPU's own network port, all-gather inside. With overlap all but
the last bucket hides behind the last micro-step's backward pass; the tied embedding's gradient is
ready last, so its bucket never hides. Not in the model: stragglers, congestion, the time that
communication kernels take from the compute.
"""

from dataclasses import dataclass

GBIT = 1e9 / 8
FLOAT_BYTES, COMPRESSED_BYTES = 4, 2


@dataclass(frozen=True)
class Link:
    """A way between ranks."""

    bytes_per_second: float
    """Bus bandwidth that all-reduce reaches, each way, for one rank."""
    latency: float
    """Seconds that one step of a ring costs beside the bytes."""


# Bus bandwidths are assumptions to be replaced by nccl-tests' own figure (`busbw`): NVLink 4 has
# 450 GB/s each way by data sheet, a 400 Gb/s port 50 GB/s; about 80 % is what is usually reached.
NVLINK = Link(360e9, 5e-6)
NETWORKS = {
    "200 Gb/s": Link(0.8 * 200 * GBIT, 15e-6),
    "400 Gb/s": Link(0.8 * 400 * GBIT, 15e-6),
}


@dataclass(frozen=True)
class Workload:
    """What was measured on one GPU."""

    step_seconds: float
    """One optimizer step of `micro_steps` micro-steps on one GPU."""
    micro_steps: int
    """Micro-steps on one GPU; more GPUs take fewer each until one is left, then smaller ones."""
    gradient_elements: int
    """Parameters, of which each has one gradient."""
    last_bucket_elements: int
    """Gradients that are ready only at the very end: the tied embedding's."""
    update_seconds: float = 0.0
    """Part of the step that more GPUs do not shorten: clipping and the optimizer."""
    backward_share: float = 2 / 3
    """Part of a micro-step behind which communication can hide."""


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """Seconds of one ring all-reduce of `size` bytes."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / link.bytes_per_second + 2 * (ranks - 1) * link.latency


def all_reduce_seconds(size: float, gpus: int, per_node: int, node: Link, network: Link) -> float:
    """Seconds of one all-reduce over nodes of `per_node` GPUs, each with its own network port."""
    local = min(gpus, per_node)
    inside = ring_seconds(size, local, node)  # half of it before, half of it after the network
    return inside + ring_seconds(size / local, -(-gpus // per_node), network)


def step_seconds(
    work: Workload,
    gpus: int,
    per_node: int,
    node: Link,
    network: Link,
    overlap: bool,
    compressed: bool,
) -> float:
    """Predicted seconds of the same optimizer step (same tokens) shared by `gpus`."""
    compute = (work.step_seconds - work.update_seconds) / gpus
    element = COMPRESSED_BYTES if compressed else FLOAT_BYTES

    def sent(elements: int) -> float:
        return all_reduce_seconds(elements * element, gpus, per_node, node, network)

    exposed = sent(work.gradient_elements)
    if overlap:
        backward = work.backward_share * compute / max(1.0, work.micro_steps / gpus)
        beside = sent(work.gradient_elements - work.last_bucket_elements)
        exposed = max(0.0, beside - backward) + sent(work.last_bucket_elements)
    return compute + work.update_seconds + exposed


def efficiency(one: float, many: float, gpus: int) -> float:
    """Part of `gpus` times the speed of one that is reached."""
    return one / (gpus * many)
