"""Named shapes of networks, such as gpt2-medium."""

from model.config import GPTConfig

# https://github.com/openai/gpt-2 hparams.json of the four released models
SHAPES = {
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
    # https://arxiv.org/abs/2005.14165 table 2.1
    "gpt3": GPTConfig(n_layer=96, n_head=96, n_embd=12288, context_length=2048),
    "demo": GPTConfig(n_layer=4, n_head=4, n_embd=128, context_length=128),
}
