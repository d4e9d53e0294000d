"""The micro-batches that a fresh run takes on GPUs of 80 and 141 GB, as a recorded table."""

from pathlib import Path
from unittest.mock import patch

import torch

from bench.bare_run import uses_muon
from model.estimates.flops import GPUS
from model.estimates.largest_micro_batch import largest_micro_batch
from model.shapes import SHAPES
from parallel.ranks import Ranks
from tests.launching import REPO
from train.batch_plan import share_of
from train.config import Config
from train.memory import micro_batch
from train.memory.forecast import step_shape
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig

CARDS = {"80 GB": GPUS["h100"].memory_bytes, "141 GB": GPUS["h200"].memory_bytes}
RECORDED = REPO / "tests" / "golden" / "micro_batches.txt"


def table() -> str:
    """A line for each shape, number of ranks and card."""
    head = f"{'shape':16}{'ranks':>6}{'card':>8}{'fits':>8}{'auto':>8}{'logits of auto':>18}\n"
    return head + "".join(
        line(name, ranks, card) for name in SHAPES for ranks in (1, 8) for card in CARDS
    )


def line(name: str, world_size: int, card: str) -> str:
    """The largest micro-batch that is predicted to fit, what `auto` takes, and its logits."""
    network = SHAPES[name]
    optimizer = MuonConfig() if uses_muon(network) else AdamWConfig()
    config = Config(data=(Path("data"),), model=network, optimizer=optimizer, dtype="bfloat16")
    ranks = Ranks(0, world_size, 0, world_size, torch.device("cuda", 0))
    share = share_of(config, world_size)
    start = f"{name:16}{world_size:6}{card:>8}"
    try:
        step = step_shape(config, network, ranks, 1, share)
        fits = largest_micro_batch(network, share, CARDS[card], step)
        with patch.object(micro_batch, "device_memory", lambda _: CARDS[card]):
            auto = micro_batch.choose_micro_batch(config, network, ranks, None)
    except ValueError as error:
        return f"{start}  {str(error).partition(',')[0]}\n"
    logits = auto * network.context_length * network.padded_vocab_size
    return f"{start}{fits:8}{auto:8}{logits:18,}\n"
