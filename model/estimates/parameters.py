"""Parameters of a network by part, from its shape alone. Letters: C width, V vocabulary rows."""

from dataclasses import dataclass

from model.config import GPTConfig


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

    @property
    def without_embeddings(self) -> int:
        """Blocks and final norm only: the N of the scaling laws."""
        return self.blocks + self.final_norm


def attention_parameters(config: GPTConfig) -> int:
    """Parameters of one attention layer."""
    C = config.n_embd
    return 4 * C * C + (4 * C if config.bias else 0)


def mlp_matrices(config: GPTConfig) -> int:
    """Matrices of one feed-forward layer, each C times the hidden width."""
    return 3 if config.mlp == "swiglu" else 2


def mlp_parameters(config: GPTConfig) -> int:
    """Parameters of one feed-forward layer."""
    C, width, matrices = config.n_embd, config.hidden_width, mlp_matrices(config)
    biases = (matrices - 1) * width + C if config.bias else 0
    return matrices * C * width + biases


def norm_parameters(config: GPTConfig) -> int:
    """Parameters of one normalisation layer."""
    return config.n_embd * (2 if config.norm == "layernorm" and config.bias else 1)


def vocabulary_rows(config: GPTConfig, padded: bool = True) -> int:
    """Rows of the embedding (V): padded to whole tiles as trained, or as the tokenizer has ids."""
    return config.padded_vocab_size if padded else config.vocab_size


def count_parameters(config: GPTConfig, padded: bool = True) -> Parameters:
    """Parameters by part, vocabulary padded as trained or, if not `padded`, as published."""
    C, V = config.n_embd, vocabulary_rows(config, padded)
    block = attention_parameters(config) + mlp_parameters(config) + 2 * norm_parameters(config)
    return Parameters(
        token_embedding=V * C,
        position_embedding=config.context_length * C if config.position == "learned" else 0,
        blocks=config.n_layer * block,
        final_norm=norm_parameters(config),
        untied_head=0 if config.tied else V * C,
    )


def block_matrix_elements(config: GPTConfig) -> int:
    """Elements of one block's matrices: what every token is multiplied with."""
    C = config.n_embd
    return 4 * C * C + mlp_matrices(config) * C * config.hidden_width
