"""FLOPs of a network from its shape, and the peak speeds of GPUs.

Forward FLOPs by part; training FLOPs by three conventions, since published MFU figures use several.
Letters: L layers, C width, T context length, V vocabulary rows, N parameters.
"""

from dataclasses import dataclass

import torch

from model.config import GPTConfig
from model.estimates.parameters import (
    block_matrix_elements,
    count_parameters,
    mlp_matrices,
    vocabulary_rows,
)


def forward_flops(config: GPTConfig, padded: bool = True) -> dict[str, int]:
    """FLOPs of the matrix products of one forward pass over one window, by part.

    A product of (m, k) and (k, n) has 2mkn. Attention is counted in full, although causal attention
    needs only half.
    """
    L, C, T = config.n_layer, config.n_embd, config.context_length
    V = vocabulary_rows(config, padded)
    return {
        "query, key, value": L * 2 * T * 3 * C * C,
        "attention scores": L * 2 * T * T * C,
        "attention values": L * 2 * T * T * C,
        "attention output": L * 2 * T * C * C,
        "feed-forward": L * 2 * T * mlp_matrices(config) * C * config.hidden_width,
        "head": 2 * T * C * V,
    }


def recomputed_flops_per_token(config: GPTConfig) -> float:
    """FLOPs per token of the blocks' forward pass, which recomputation makes twice."""
    parts = forward_flops(config)
    return (sum(parts.values()) - parts["head"]) / config.context_length


def training_flops_per_token(config: GPTConfig, context_length: int | None = None) -> float:
    """FLOPs of forward and backward per token, 6N + 12LCT: PaLM's convention, used for MFU.

    N excludes the position table and an untied embedding: both are looked up, not multiplied.
    Source: https://arxiv.org/abs/2204.02311 appendix B.
    """
    T = context_length or config.context_length
    counts = count_parameters(config)
    N = counts.without_positions - (0 if config.tied else counts.token_embedding)
    return 6 * N + 12 * config.n_layer * config.n_embd * T


def matmul_flops_per_token(config: GPTConfig, context_length: int | None = None) -> float:
    """Training FLOPs per token of matrix products only; attention is counted in full."""
    T = context_length or config.context_length
    return 6 * _matrix_elements(config) + 12 * config.n_layer * config.n_embd * T


def causal_flops_per_token(config: GPTConfig, context_length: int | None = None) -> float:
    """Training FLOPs per token of matrix products, with the causal half of attention only.

    This is what an attention kernel computes that skips masked blocks.
    """
    T = context_length or config.context_length
    return 6 * _matrix_elements(config) + 6 * config.n_layer * config.n_embd * T


def _matrix_elements(config: GPTConfig) -> int:
    head = config.n_embd * config.padded_vocab_size
    return config.n_layer * block_matrix_elements(config) + head


# The first one is the convention of every MFU that this project prints.
# Compare other projects by tokens/s, not by MFU: they use other conventions, and some the peak of
# another GPU (nanoGPT: 312e12, an A100).
CONVENTIONS = {
    "6N + 12LCT (PaLM; MFU)": training_flops_per_token,
    "causal-exact": causal_flops_per_token,
    "matmul only": matmul_flops_per_token,
}

_GB = 10**9


@dataclass(frozen=True)
class _Gpu:
    """One kind of GPU. Peaks are those of its tensor cores without sparsity, in FLOP/s.

    float16 is as fast as bfloat16 on all of them. float32 products are TF32 (parallel/ranks.py);
    without tensor cores they would be 5 to 30 times as slow as bfloat16. Sources: the pages and
    data sheets of NVIDIA, https://www.nvidia.com/en-us/data-center/h200/ and h100, a100, l40s,
    dgx-b200, where figures with sparsity are twice these; for the RTX 4090
    https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf
    (appendix A, with float32 accumulation). Of the TF32 peaks only those of H100 and H200 were
    looked up: https://glennklockwood.com/garden/processors/h100.
    """

    part_of_name: str
    """A part of the name that torch reports for the device."""
    bfloat16: float
    tf32: float
    memory_bytes: int

    def peak(self, dtype: torch.dtype) -> float:
        """The peak of matrix products of this type as the trainer runs them."""
        return self.tf32 if dtype == torch.float32 else self.bfloat16


# The order matters for `peak_flops`: "H100 PCIe" must come before "H100". "GH200" contains "H200".
GPUS = {
    "h200": _Gpu("H200", 989e12, 494e12, 141 * _GB),
    "h100-pcie": _Gpu("H100 PCIe", 756e12, 378e12, 80 * _GB),
    "h100-nvl": _Gpu("H100 NVL", 835e12, 418e12, 94 * _GB),
    "h100": _Gpu("H100", 989e12, 494e12, 80 * _GB),
    "h800": _Gpu("H800", 989e12, 494e12, 80 * _GB),
    "a100-40gb": _Gpu("A100-SXM4-40GB", 312e12, 156e12, 40 * _GB),
    "a100-40gb-pcie": _Gpu("A100-PCIE-40GB", 312e12, 156e12, 40 * _GB),
    "a100": _Gpu("A100", 312e12, 156e12, 80 * _GB),
    "a800": _Gpu("A800", 312e12, 156e12, 80 * _GB),
    "b200": _Gpu("B200", 2250e12, 1125e12, 180 * _GB),
    "l40s": _Gpu("L40S", 362e12, 183e12, 48 * _GB),
    "rtx4090": _Gpu("RTX 4090", 165e12, 82.6e12, 24 * _GB),
}


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Peak of one GPU for matrix products of this type; None if the GPU is not in the table."""
    for gpu in GPUS.values():
        if gpu.part_of_name in device_name:
            return gpu.peak(dtype)
    return None
