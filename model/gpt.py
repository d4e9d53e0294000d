"""The network: exactly GPT-2 by default, Llama-like and modern ones by fields of GPTConfig.

`hidden(ids)` gives the normalised states after the last block, `head(states)` the logits.
Shape letters: B batch, T tokens, S attended tokens, C n_embd, H heads, D head width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from model.blocks import Block, new_norm, recomputed, rotation
from model.config import GPTConfig
from model.documents.flex_blocks import document_blocks
from model.documents.mask import document_mask, document_positions
from model.dropout import dropped
from model.kv_cache import KVCache
from model.precision import product_dtype
from model.shortcuts import Paths, Shortcuts

_INIT_STD = 0.02  # https://github.com/openai/gpt-2/blob/master/src/model.py
# Of zero_outputs: variance times fan-in of a matrix.
# https://github.com/KellerJordan/modded-nanogpt records/track_3_optimization/train_gpt_simple.py
_FAN_IN_VARIANCE = 0.33


class GPT(nn.Module):
    """A GPT-2-class language model; its parameters have GPT-2's names."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.context_length, config.n_embd)
        if config.embedding_norm:
            self.ln_e = new_norm(config)
        if config.shortcuts:
            self.shortcuts = Shortcuts(config.n_layer)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = new_norm(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)

    def initialise(self, seed: int) -> None:
        """Draw initial weights from `seed`; they are the same on every rank and device."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                # On the CPU first: a CUDA generator draws other numbers from the same seed.
                std = self._initial_std(name, parameter.size(1))
                drawn = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
                parameter.data.copy_(drawn)
        if self.config.shortcuts:
            self.shortcuts.initialise()

    def _initial_std(self, name: str, fan_in: int) -> float:
        """The standard deviation of the initial weights of a matrix or embedding."""
        ends_block = name.endswith("c_proj.weight")
        if self.config.initial_weights == "gpt2":
            # 1/sqrt(N) for N residual layers, two a block: section 2.3 of the GPT-2 paper.
            return _INIT_STD / math.sqrt(2 * self.config.n_layer) if ends_block else _INIT_STD
        if name == "wte.weight" and not self.config.tied:
            return 1.0
        if name in ("wte.weight", "wpe.weight"):
            return _INIT_STD
        ends = ends_block or name == "lm_head.weight"
        return 0.0 if ends else math.sqrt(_FAN_IN_VARIANCE / fan_in)

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | BlockMask | None = None,
        cache: KVCache | None = None,
        residual: torch.dtype | None = None,
        dropout: float = 0.0,
        recompute: bool = False,
        separator: int | None = None,
        flex: bool = False,
    ) -> Tensor:
        """The normalised states after the last block.

        `positions`: default 0 to T - 1, or those after the cached tokens. `mask`: True where
        attention is allowed, default causal. `residual`: type of the residual stream, default the
        embedding's. `dropout`: the share of numbers that are set to zero; see model/dropout.py.
        `recompute`: keep only the input of each block for the backward pass. `separator`: the id
        that opens a document; positions and mask are then those within documents, the latter as
        blocks if `flex`.
        Shapes: ids (B, T) integers, positions (T) or (B, T), mask broadcastable to (B, H, T, S)
        -> (B, T, C).
        Raises: ValueError for more tokens than context_length.
        """
        if separator is not None:
            positions, mask = self._within_documents(ids, separator, flex)
        if positions is None:
            positions = self._positions(ids, cache)
        elif cache is not None:
            cache.make_room(ids.size(1))
        if mask is None and cache is not None:
            mask = cache.causal_mask()
        x = self.wte(ids)  # (B, T) -> (B, T, C)
        rotary = self.config.position == "rope"
        turn = rotation(self.config, positions, product_dtype(x)) if rotary else None
        if self.config.position == "learned":
            x = x + self.wpe(positions)
        # float32 unless asked for: a bfloat16 stream shifted the loss curve (bench/LOG.md).
        x = x.to(residual or x.dtype)
        if self.config.embedding_norm:
            x = self.ln_e(x)
        x = dropped(x, dropout)
        paths = Paths(self.shortcuts, x) if self.config.shortcuts else None
        for layer, block in enumerate(self.h):
            x = x if paths is None else paths.block_input(layer, x)
            if recompute:
                x = recomputed(block, x, turn, mask, paths, dropout)
            else:
                x = block(x, turn, mask, cache, paths, dropout)
        if cache is not None:
            cache.advance()
        return self.ln_f(x)

    def _positions(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        """Those of the whole input, behind the cached tokens. Shapes: (B, T) -> (T) or (B, T)."""
        T, most = ids.size(1), self.config.context_length
        slots = torch.arange(0, T, device=ids.device) if cache is None else cache.make_room(T)
        longest = T if cache is None else cache.end
        if longest > most:
            raise ValueError(
                f"{longest} tokens are more than context_length={most}; shorten the input"
            )
        return slots

    def _within_documents(
        self, ids: Tensor, separator: int, flex: bool
    ) -> tuple[Tensor, Tensor | BlockMask]:
        """Positions and mask within documents. Shapes: (B, T) -> (B, T), (B, 1, T, T)."""
        self._positions(ids, None)  # as many tokens as without
        positions = document_positions(ids, separator)
        if flex:
            return positions, document_blocks(positions)
        return positions, document_mask(positions, product_dtype(self.wte.weight))

    def new_cache(self, batch: int, length: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `length` tokens; default dtype: the weights'."""
        config, like = self.config, self.wte.weight
        shape = (config.n_layer, batch, config.n_head, length, config.head_width)
        return KVCache(shape, dtype or like.dtype, like.device)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, C)."""
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over the padded vocabulary. Shapes: (..., C) -> (..., V)."""
        return self._capped(F.linear(hidden, self.head_weight))

    def _capped(self, logits: Tensor) -> Tensor:
        """The logits within the soft-cap, in float32; without one as they are."""
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits.float() / cap)

    def float32_head(self, hidden: Tensor) -> Tensor:
        """Logits in float32, also under autocast. Shapes: (..., C) -> (..., V).

        On CUDA the matrix product uses TF32.
        """
        # GPT-2's logits are near -100, where bfloat16 has steps of 0.5: likely tokens would tie.
        with torch.autocast(hidden.device.type, enabled=False):
            return self._capped(F.linear(hidden.float(), self.head_weight.float()))

    def masked_logits(self, hidden: Tensor) -> Tensor:
        """float32 logits to sample and score, padding ids -inf. Shapes: (..., C) -> (..., V)."""
        logits = self.float32_head(hidden)
        # A sampled padding id has no text, and tiktoken fails to decode it:
        # https://github.com/karpathy/build-nanogpt/issues/80
        logits[..., self.config.vocab_size :] = -math.inf
        return logits

    def forward(self, ids: Tensor) -> Tensor:
        """Logits over the padded vocabulary. Shapes: (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids))
