"""Parameters of a network by part, from its shape.

Letters: C width, V vocabulary rows.
"""

from dataclasses import dataclass

from model.config import GPTConfig


@dataclass(frozen=True)
class _Parameters:
    """Number of parameters by part."""

    token_embedding: int
    position_embedding: int
    blocks: int
    final_norm: int
    untied_head: int
    embedding_norm: int
    shortcuts: int
    """The learned scales of all shortcuts."""

    @property
    def total(self) -> int:
        """All parameters; a tied head counts once."""
        return (
            self.token_embedding
            + self.position_embedding
            + self.blocks
            + self.final_norm
            + self.untied_head
            + self.embedding_norm
            + self.shortcuts
        )

    @property
    def without_positions(self) -> int:
        """All parameters except the position table: the N of the usual FLOP formula."""
        return self.total - self.position_embedding

    @property
    def without_embeddings(self) -> int:
        """Blocks and final norm: the N of the scaling laws, https://arxiv.org/abs/2001.08361."""
        return self.blocks + self.final_norm


def attention_parameters(config: GPTConfig) -> int:
    """Parameters of one attention layer."""
    C = config.n_embd
    return 4 * C * C + (4 * C if config.bias else 0)


def mlp_matrices(config: GPTConfig) -> int:
    """Number of matrices of one feed-forward layer, each of C times the hidden width."""
    return 3 if config.mlp == "swiglu" else 2


def _mlp_parameters(config: GPTConfig) -> int:
    """Parameters of one feed-forward layer."""
    C, width, matrices = config.n_embd, config.hidden_width, mlp_matrices(config)
    biases = (matrices - 1) * width + C if config.bias else 0
    return matrices * C * width + biases


def norm_parameters(config: GPTConfig) -> int:
    """Parameters of one normalisation layer."""
    if not config.norm_weight:
        return 0
    return config.n_embd * (2 if config.norm == "layernorm" and config.bias else 1)


def vocabulary_rows(config: GPTConfig, padded: bool = True) -> int:
    """Rows of the embedding (V): padded, as trained, or one for each id of the tokenizer."""
    return config.padded_vocab_size if padded else config.vocab_size


def count_parameters(config: GPTConfig, padded: bool = True) -> _Parameters:
    """Parameters by part; the vocabulary is padded, as trained, or not, as published."""
    C, V = config.n_embd, vocabulary_rows(config, padded)
    block = attention_parameters(config) + _mlp_parameters(config) + 2 * norm_parameters(config)
    return _Parameters(
        token_embedding=V * C,
        position_embedding=config.context_length * C if config.position == "learned" else 0,
        blocks=config.n_layer * block,
        final_norm=norm_parameters(config),
        untied_head=0 if config.tied else V * C,
        embedding_norm=norm_parameters(config) if config.embedding_norm else 0,
        shortcuts=3 * config.n_layer + config.n_layer // 2 if config.shortcuts else 0,
    )


def block_matrix_shapes(config: GPTConfig) -> list[tuple[int, int]]:
    """Rows and columns of the matrices of one block; query, key and value are three."""
    C, W = config.n_embd, config.hidden_width
    return [(C, C)] * 4 + [(W, C)] * (mlp_matrices(config) - 1) + [(C, W)]


def block_matrix_elements(config: GPTConfig) -> int:
    """Elements of the matrices of one block: the weights that every token is multiplied with."""
    return sum(rows * columns for rows, columns in block_matrix_shapes(config))
