"""What a model costs: parameters and FLOPs, from its shape alone.

Letters: L layers, C width, T context length, V vocabulary rows.
"""

from dataclasses import dataclass

from model.gpt import GPTConfig


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters by part."""

    token_embedding: int
    position_embedding: int
    blocks: int
    final_norm: int
    untied_head: int

    @property
    def total(self) -> int:
        """All parameters; a tied head counts once."""
        return (
            self.token_embedding
            + self.position_embedding
            + self.blocks
            + self.final_norm
            + self.untied_head
        )

    @property
    def without_positions(self) -> int:
        """All parameters but the position table: the N of the usual FLOP formula."""
        return self.total - self.position_embedding


def attention_parameters(config: GPTConfig) -> int:
    """Parameters of one attention layer."""
    C = config.n_embd
    return 4 * C * C + (4 * C if config.bias else 0)


def mlp_parameters(config: GPTConfig) -> int:
    """Parameters of one feed-forward layer."""
    C, width = config.n_embd, config.hidden_width
    matrices = 3 if config.mlp == "swiglu" else 2
    biases = (matrices - 1) * width + C if config.bias else 0
    return matrices * C * width + biases


def norm_parameters(config: GPTConfig) -> int:
    """Parameters of one normalisation layer."""
    return config.n_embd * (2 if config.norm == "layernorm" and config.bias else 1)


def count_parameters(config: GPTConfig, padded: bool = True) -> Parameters:
    """Parameters by part, vocabulary padded as trained or, if not `padded`, as published."""
    V = config.padded_vocab_size if padded else config.vocab_size
    block = attention_parameters(config) + mlp_parameters(config) + 2 * norm_parameters(config)
    return Parameters(
        token_embedding=V * config.n_embd,
        position_embedding=config.context_length * config.n_embd
        if config.position == "learned"
        else 0,
        blocks=config.n_layer * block,
        final_norm=norm_parameters(config),
        untied_head=0 if config.tied else V * config.n_embd,
    )


def training_flops_per_token(config: GPTConfig, context_length: int | None = None) -> float:
    """FLOPs of forward and backward per token, 6N + 12LCT: PaLM's convention, used for MFU.

    Source: https://arxiv.org/abs/2204.02311 appendix B. N leaves out the position table (and an
    untied embedding, which is a look-up, not a multiply).
    """
    T = context_length or config.context_length
    counts = count_parameters(config)
    N = counts.without_positions - (0 if config.tied else counts.token_embedding)
    return 6 * N + 12 * config.n_layer * config.n_embd * T


# Dense bf16 tensor-core peaks in FLOP/s by a part of the device's name; NVIDIA's data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of one GPU in FLOP/s, or None if the GPU is not in the table."""
    for name, peak in PEAK_FLOPS.items():
        if name in device_name:
            return peak
    return None
