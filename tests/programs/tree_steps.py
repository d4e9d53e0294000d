"""Steps of several networks with `--reduction tree`; each rank writes its digests.

    together(RANKS, "tests/programs/tree_steps.py", "FILE")

Then rank 1 does not answer rank 0, which writes the error that this gives.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from parallel.collectives import set_collective_timeout, swap_with
from parallel.ranks import start, stop
from tests.runs import MODERN, SHAPE
from train.batch_plan import plan_batch
from train.build import build_learner, new_network
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.recovery.ending import is_peer_failure
from train.step import StepBatch

SMALL = {"vocab_size": 300, "context_length": 16}
GPT2, OTHER = replace(SHAPE, **SMALL), replace(MODERN, **SMALL)
ADAM = AdamWConfig(lr=1e-2)
# Network, optimizer, windows of a step, micro-batch, and other settings.
CASES = {
    "tied": (GPT2, ADAM, 16, 2, {}),
    "3 x 4 micro-batches": (GPT2, ADAM, 12, 1, {}),
    "four micro-batches": (GPT2, ADAM, 4, 1, {}),
    "dropout": (replace(GPT2, dropout=0.2), ADAM, 16, 2, {}),
    "modern": (OTHER, MuonConfig(), 16, 2, {}),
    "bfloat16": (OTHER, MuonConfig(), 16, 2, {"dtype": "bfloat16"}),
    "plain loss": (GPT2, ADAM, 8, 2, {"fused_loss": "off"}),
    "documents": (OTHER, MuonConfig(), 8, 2, {"mask_documents": True}),
}


def digest(learner, values):
    """Of weights, moments and the values of the last step."""
    found = hashlib.sha256(values.numpy().tobytes())
    for parameter in learner.model.parameters():
        found.update(parameter.detach().numpy().tobytes())
        for tensor in learner.optimizer.state[parameter].values():
            found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def steps(case, ranks):
    """The digest after three steps."""
    shape, optimizer, windows, micro_batch, more = CASES[case]
    config = Config(
        model=shape, optimizer=optimizer, batch_tokens=windows * 16, reduction="tree", **more
    )
    plan = plan_batch(config, ranks.world_size, micro_batch)
    network, separator = new_network(config, shape, ranks), config.separator_of(7)
    learner = build_learner(config, network, plan, ranks, separator=separator)
    ids = torch.randint(0, 300, (3, windows, 17), generator=torch.Generator().manual_seed(1))
    values = torch.zeros(0)
    for number, step in enumerate(ids.to(torch.int16)):
        own = torch.cat([step[r.start : r.stop] for r in plan.windows_of(ranks.rank)])
        values = learner.step(StepBatch(number * windows, number + ranks.rank, own), lr=1e-2)
    values[2:6] = 0  # the sum of made-up digests depends on the number of ranks
    return digest(learner, values)


def ask_a_silent_rank(ranks, answer):
    """On rank 0: write what the error says. The processes then end as a failed run's do."""
    set_collective_timeout(0.2)
    if ranks.rank == 0:
        try:
            swap_with(1, torch.zeros(9), torch.zeros(9))
        except RuntimeError as error:
            answer.write_text(f"{is_peer_failure(error)}: {error}")
    while not answer.exists():
        time.sleep(0.02)
    os._exit(0)


def main():
    """All cases, one after another."""
    ranks, out = start("cpu"), sys.argv[1]
    found = {case: steps(case, ranks) for case in CASES}
    Path(f"{out}.{ranks.rank}").write_text(json.dumps(found))
    if ranks.world_size > 1:
        ask_a_silent_rank(ranks, Path(f"{out}.silent"))
    stop()


if __name__ == "__main__":
    main()
