"""A model of the time of a training step on several GPUs, from a measurement on one.

A ring all-reduce moves 2(n-1)/n of the gradient over the slowest link of each rank, and each of its
2(n-1) steps costs the latency of the link. Several nodes: reduce-scatter inside a node, all-reduce
of each GPU's part between nodes over the GPU's own network port, all-gather inside the node. With
overlap, all buckets but the last are sent during the last micro-step's backward pass. The last
bucket is never hidden, because the gradient of the tied embedding is ready last. The model ignores
stragglers, congestion, and the time that communication kernels take from the compute.

`--reduction tree` moves the same bytes over each link, in 2 log2(n) messages: recursive halving and
doubling, first inside a node and then, with each GPU's part, between nodes. All of it comes after
the backward pass. Its own additions and its copy into one piece read and write a GPU's memory.
"""

from dataclasses import dataclass

_GBIT = 1e9 / 8
_FLOAT_BYTES, _COMPRESSED_BYTES = 4, 2
# Bytes per second of a GPU's memory: an H100 of 80 GB, by data sheet 3.35 TB/s, at about 80 %.
_GPU_MEMORY = 2.7e12
_COPY, _SUM = 2, 3  # times that the gradient's bytes are read or written


@dataclass(frozen=True)
class Link:
    """A connection between ranks."""

    bytes_per_second: float
    """Bus bandwidth that an all-reduce reaches in each direction, for one rank."""
    latency: float
    """Seconds of one step of a ring without any bytes."""


# Both are assumptions; replace them by the `busbw` of https://github.com/NVIDIA/nccl-tests. By data
# sheet, NVLink 4 has 450 GB/s in each direction and a 400 Gb/s port 50 GB/s. About 80 % is usual.
NVLINK = Link(360e9, 5e-6)
NETWORKS = {
    "200 Gb/s": Link(0.8 * 200 * _GBIT, 15e-6),
    "400 Gb/s": Link(0.8 * 400 * _GBIT, 15e-6),
}


@dataclass(frozen=True)
class Workload:
    """A step as measured on one GPU."""

    step_seconds: float
    """One optimizer step of `micro_steps` micro-steps on one GPU."""
    micro_steps: int
    """Micro-steps on one GPU. More GPUs share them; beyond one each, micro-steps get shorter."""
    gradient_elements: int
    """Number of gradients, which is the number of parameters."""
    last_bucket_elements: int
    """Number of gradients that are ready last: those of the tied embedding."""
    update_seconds: float = 0.0
    """Seconds of clipping and the optimizer, which more GPUs do not shorten."""
    backward_share: float = 2 / 3
    """Share of a micro-step in which communication can overlap."""


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """Seconds of one ring all-reduce of `size` bytes."""
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) / ranks * size / link.bytes_per_second + 2 * (ranks - 1) * link.latency


def all_reduce_seconds(size: float, gpus: int, per_node: int, node: Link, network: Link) -> float:
    """Seconds of one all-reduce over nodes of `per_node` GPUs, each with its own network port."""
    local = min(gpus, per_node)
    inside = ring_seconds(size, local, node)  # reduce-scatter and all-gather, each half of it
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
    """Predicted seconds of the same optimizer step, with the same tokens, on `gpus` GPUs."""
    compute = (work.step_seconds - work.update_seconds) / gpus
    element = _COMPRESSED_BYTES if compressed else _FLOAT_BYTES

    def sent(elements: int) -> float:
        return all_reduce_seconds(elements * element, gpus, per_node, node, network)

    exposed = sent(work.gradient_elements)
    if overlap:
        backward = work.backward_share * compute / max(1.0, work.micro_steps / gpus)
        overlapped = sent(work.gradient_elements - work.last_bucket_elements)
        exposed = max(0.0, overlapped - backward) + sent(work.last_bucket_elements)
    return compute + work.update_seconds + exposed


def efficiency(one: float, many: float, gpus: int) -> float:
    """The speed on `gpus` GPUs as a share of `gpus` times the speed on one."""
    return one / (gpus * many)


def halving_seconds(size: float, ranks: int, link: Link) -> float:
    """Seconds of one recursive halving and doubling of `size` bytes; `ranks` is a power of two."""
    stages = ranks.bit_length() - 1
    return 2 * (ranks - 1) / ranks * size / link.bytes_per_second + 2 * stages * link.latency


def tree_step_seconds(work: Workload, gpus: int, per_node: int, node: Link, network: Link) -> float:
    """Predicted seconds of the same step with `--reduction tree`; `gpus` is a power of two."""
    size = _FLOAT_BYTES * work.gradient_elements
    local = min(gpus, per_node)
    sent = halving_seconds(size, local, node)
    sent += halving_seconds(size / local, -(-gpus // per_node), network)
    touched = _COPY + _SUM * (1 - 1 / gpus) if gpus > 1 else 0.0
    # A backward pass adds pairs by itself; the sums of pairs are added one to the other.
    touched += _SUM * max(0, work.micro_steps // gpus // 2 - 1)
    compute = (work.step_seconds - work.update_seconds) / gpus
    return compute + work.update_seconds + sent + touched * size / _GPU_MEMORY
