"""Named shapes of networks, such as gpt2-medium."""

from dataclasses import replace

from model.config import GPTConfig

# What modded-nanogpt and nanochat have found since 2024, as far as transformers has a class for it
# (NanoChatForCausalLM). Heads are 128 wide.
# https://github.com/KellerJordan/modded-nanogpt, https://github.com/karpathy/nanochat
_MODERN = GPTConfig(
    n_head=6,
    norm="rmsnorm",
    norm_weight=False,
    embedding_norm=True,
    qk_norm=True,
    mlp="relu2",
    position="rope",
    bias=False,
    tied=False,
    logit_softcap=15.0,
    initial_weights="zero_outputs",
)

# https://github.com/openai/gpt-2 hparams.json of the four released models
SHAPES = {
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
    # https://arxiv.org/abs/2005.14165 table 2.1
    "gpt3": GPTConfig(n_layer=96, n_head=96, n_embd=12288, context_length=2048),
    "modern": _MODERN,
    "modern-medium": replace(_MODERN, n_layer=24, n_head=8, n_embd=1024),
    "modern-large": replace(_MODERN, n_layer=36, n_head=10, n_embd=1280),
    "demo": replace(_MODERN, n_layer=4, n_head=4, n_embd=128, context_length=128),
    "gpt2-demo": GPTConfig(n_layer=4, n_head=4, n_embd=128, context_length=128),
}
