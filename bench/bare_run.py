"""What benchmarks train: shapes by name, and runs in which nothing but steps is due."""

from dataclasses import replace

from model.config import GPTConfig
from model.shapes import SHAPES
from train.config import Config, EvalConfig, SampleConfig, SaveConfig
from train.schedule import ScheduleConfig

SMALL = GPTConfig(n_layer=6, n_head=6, n_embd=384, context_length=256)
LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
NETWORKS = SHAPES | {
    "30M": SMALL,
    "30M-llama": replace(SMALL, **LLAMA),
    # As deep as GPT-2 124M (bfloat16 rounds a residual stream once a layer), a sixth as wide.
    "deep": GPTConfig(n_layer=12, n_head=4, n_embd=128, context_length=128),
}
# No warm-up, evaluation, samples or saves by the clock; take it with dataclasses.replace.
BARE = Config(
    schedule=ScheduleConfig(warmup_steps=0),
    eval=EvalConfig(every=0, tasks_every=0, tasks=()),
    sample=SampleConfig(every=0),
    save=SaveConfig(every_minutes=0),
)


def check_shape(name: str) -> None:
    """Raises: ValueError if there is no network of that name."""
    if name not in NETWORKS:
        raise ValueError(f"there is no shape {name}; choose from {', '.join(NETWORKS)}")
