"""What benchmarks train: network shapes by name, learners and loaders without a run.

A learner needs no data set and no folder; a loader needs a data set. `BARE` is a configuration in
which a step does nothing but train.
"""

from dataclasses import replace

from data_prep.order.training_data import open_training_data
from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from model.shapes import SHAPES
from parallel.ranks import Ranks
from storage.retention import SaveConfig
from train.batch_plan import plan_batch
from train.build import build_learner, new_network
from train.config import Config
from train.loader import Loader
from train.schedule import ScheduleConfig
from train.step import Learner

_SMALL = GPTConfig(n_layer=6, n_head=6, n_embd=384, context_length=256)
_LLAMA = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rope", "bias": False, "tied": False}
NETWORKS = SHAPES | {
    "demo": SHAPES["gpt2-demo"],  # the names of older results
    "demo-modern": SHAPES["demo"],
    "30M": _SMALL,
    "30M-modern": replace(SHAPES["modern"], n_layer=6, n_head=3, n_embd=384, context_length=256),
    "30M-llama": replace(_SMALL, **_LLAMA),
    # As deep as GPT-2 124M, because bfloat16 rounds a residual stream once in each layer. A sixth
    # as wide, so that hundreds of steps on a CPU take minutes.
    "deep": GPTConfig(n_layer=12, n_head=4, n_embd=128, context_length=128),
}
# No warm-up, no evaluation, no samples, no saves by time. Change it with dataclasses.replace.
BARE = Config(
    schedule=ScheduleConfig(warmup_steps=0),
    eval=EvalConfig(every=0, tasks_every=0, tasks=()),
    sample=SampleConfig(every=0),
    save=SaveConfig(every_minutes=0),
)


def uses_muon(network: GPTConfig) -> bool:
    """Whether the presets train a network of this kind with Muon."""
    return network.initial_weights == "zero_outputs"


def bare_learner(config: Config, ranks: Ranks) -> Learner:
    """The learner that `config` describes, before its first step. It reads nothing from disk.

    Raises: ValueError if the micro-batch is "auto", which a run would choose by trial.
    """
    if config.micro_batch == "auto":
        raise ValueError("micro_batch=auto cannot be used in a benchmark; set a number")
    plan = plan_batch(config, ranks.world_size, config.micro_batch)
    network = new_network(config, config.network, ranks)
    separator = config.separator_of(config.network.vocab_size - 1)  # as GPT-2's and our own are
    learner = build_learner(config, network, plan, ranks, separator=separator)
    learner.fix_bucket_layout()
    return learner


def bare_loader(config: Config, learner: Learner) -> Loader:
    """A loader that starts at the first window of `config.data`, with GPT-2's tokens."""
    stream = open_training_data(config.data).stream(config.seed)
    return Loader(stream, learner.plan, learner.ranks, first_window=0)


def check_shape(name: str) -> None:
    """Raises: ValueError if there is no network of that name."""
    if name not in NETWORKS:
        raise ValueError(f"there is no shape {name}; choose from {', '.join(NETWORKS)}")
