"""A whole run with `--compile on`, on one or more ranks: its graphs and host reads, counted.

    python tests/programs/counted_run.py FOLDER RECIPE CHANGES

Nothing is compiled: a graph is run as it was traced. CHANGES are settings as JSON. Rank 0 writes
FOLDER/counts.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from parallel.ranks import Ranks, start, stop
from storage.retention import SaveConfig
from tests.host_reads import HostReads
from tests.runs import RECIPES, nano_config
from train import build
from train.batch_plan import BatchPlan
from train.config import Config
from train.loop import train
from train.preflight.inputs import check_inputs
from train.step import StepBatch

STEPS, MICRO_STEPS, WINDOWS = 4, 2, 16
# Enough weights for two of DDP's buckets, of which the first has 1 MiB.
WIDE = {"n_layer": 2, "n_head": 2, "n_embd": 192, "context_length": 16}


def config_of(folder: Path, world_size: int, recipe: str) -> Config:
    """A run that is evaluated, samples and saves between its steps; GPT-2 has dropout."""
    changes = RECIPES[recipe]
    return nano_config(
        folder,
        **changes | {"model": replace(changes.get("model", GPTConfig(dropout=0.1)), **WIDE)},
        steps=STEPS,
        batch_tokens=WINDOWS * 16,
        micro_batch=WINDOWS // MICRO_STEPS // world_size,
        compile="on",
        eval=EvalConfig(every=2, val_tokens=64, tasks_every=0, tasks=()),
        sample=SampleConfig(every=2, max_tokens=2, prompts=("",)),
        save=SaveConfig(every=2, every_minutes=0),
    )


def count(config: Config, ranks: Ranks) -> dict:
    """What is counted after each update: of the run, and of two steps with half the micro-batch."""
    graphs, after, real = [], [], torch.compile

    def counted(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    def compile_counted(module, *, dynamic, options=None):
        return real(module, backend=counted, dynamic=dynamic)  # `options` are Inductor's

    torch.compile = compile_counted
    build.memory_at_first = lambda *_: 0  # it would import Inductor, which is not used here
    run = build.build_run(config, ranks, check_inputs(config, ranks))
    learner = run.learner
    learner.before_update = lambda _: after.append(len(graphs))
    train(run)
    learner.plan = replace(learner.plan, micro_batch=learner.plan.micro_batch // 2)
    for _ in range(2):
        learner.step(run.loader.next_step(), 1e-3)
    batches = [run.loader.next_step() for _ in range(2)]
    run.close()
    return {
        "graphs": after,
        "breaks": dict(counters["graph_break"]),
        "reads": host_reads(replace(config, compile="off"), run.plan, ranks, batches),
    }


def host_reads(config: Config, plan: BatchPlan, ranks: Ranks, batches: list[StepBatch]) -> list:
    """The host reads of whole steps that are not compiled."""
    network = build.new_network(config, config.model, ranks)
    learner = build.build_learner(config, network, plan, ranks)
    with HostReads() as reads:
        for batch in batches:
            learner.step(batch, 1e-3, limits=(9.0, 9.0))
    assert reads.operations > 100
    return reads.found


if __name__ == "__main__":
    folder, recipe, changes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    ranks = start("cpu")
    found = count(replace(config_of(folder, ranks.world_size, recipe), **changes), ranks)
    if ranks.is_main:
        (folder / "counts.json").write_text(json.dumps(found))
    stop()
