"""CPU time of a step of the modern network with Muon, against GPT-2's with AdamW, by part.

    OMP_NUM_THREADS=1 python bench/modern_step.py
    OMP_NUM_THREADS=1 python bench/modern_step.py --width 768 --layers 2 --vocab-size 50257

Both learners take the same tokens. A round has one step of each, in alternating order, and gives
the CPU time of all threads in the forward pass, the backward pass and the update. The result is
the median of all rounds, in milliseconds. Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.bare_run import BARE, bare_learner
from bench.provenance import RESULTS, provenance
from model.shapes import SHAPES
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options
from train.config import Config
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.optimizers.registry import update
from train.step import Learner

_OUT = RESULTS / "modern_step.json"
_WARM_UP = 3
_PARTS = ("forward", "backward", "update")
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Time the parts of both steps; the defaults are the size of the demo."""

    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of GPT-2's shape; the modern one has half as many, each twice as wide."""
    width: int = 128
    """Width of the residual stream."""
    context_length: int = 128
    """Tokens of a window."""
    vocab_size: int = 4096
    """Ids of the tokenizer."""
    batch: int = 16
    """Windows of a step, all in one micro-step."""
    rounds: int = 20
    """Steps of each."""
    out: Path = _OUT
    """Result file."""


def _step_config(arguments: Arguments, shape: str) -> Config:
    """The configuration of the steps that are timed; `shape`: gpt2 or modern."""
    modern = shape == "modern"
    network = replace(
        SHAPES[shape],
        n_layer=arguments.layers,
        n_head=arguments.heads // 2 if modern else arguments.heads,
        n_embd=arguments.width,
        context_length=arguments.context_length,
        vocab_size=arguments.vocab_size,
    )
    return replace(
        BARE,
        batch_tokens=arguments.batch * arguments.context_length,
        micro_batch=arguments.batch,
        model=network,
        optimizer=MuonConfig() if modern else AdamWConfig(),
        device="cpu",
    )


def _timed_step(learner: Learner, windows: torch.Tensor) -> list[float]:
    """One step; milliseconds of CPU time of each of `_PARTS`."""
    clock = [time.process_time()]
    learner.optimizer.zero_grad(set_to_none=True)
    loss = learner.step_model(windows[:, :-1], windows[:, 1:])
    clock.append(time.process_time())
    loss.backward()
    clock.append(time.process_time())
    learner.clip_gradient()
    update(learner.optimizer, learner.updates, 1e-3, torch.zeros(()))
    learner.updates += 1
    clock.append(time.process_time())
    return [round(1000 * (after - before), 2) for before, after in pairwise(clock)]


def _measure(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """For both shapes, the milliseconds of each part in every round, and their medians."""
    ranks = start("cpu")
    learners = {
        shape: bare_learner(_step_config(arguments, shape), ranks) for shape in ("gpt2", "modern")
    }
    windows = torch.randint(arguments.vocab_size, (arguments.batch, arguments.context_length + 1))
    times: dict[str, list[list[float]]] = {shape: [] for shape in learners}
    for number in range(_WARM_UP + arguments.rounds):
        for shape in list(learners)[:: 1 if number % 2 else -1]:
            times[shape].append(_timed_step(learners[shape], windows))
    found = {}
    for shape, rounds in times.items():
        columns = list(zip(*rounds[_WARM_UP:], strict=True))
        medians = dict(zip(_PARTS, map(statistics.median, columns), strict=True))
        found[shape] = {"milliseconds": rounds[_WARM_UP:], "median": medians}
    return found


def _table_of(found: dict[str, dict[str, Any]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| ms of CPU time | " + " | ".join((*_PARTS, "step")) + " |",
        "| --- | --: | --: | --: | --: |",
    ]
    rows = {shape: list(result["median"].values()) for shape, result in found.items()}
    for shape, row in rows.items():
        lines.append(f"| {shape} | " + " | ".join(f"{ms:.1f}" for ms in (*row, sum(row))) + " |")
    ratios = sum(rows["modern"]) / sum(rows["gpt2"])
    lines.append(f"\nA modern step takes {ratios:.2f} times the CPU time of GPT-2's.")
    return "\n".join(lines)


def main() -> None:
    """Time both, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        origin = provenance(("torch",)) | {"threads": torch.get_num_threads()}
        found = _measure(arguments)
        write_json(arguments.out, origin | {"steps": found})
        log.info("%s", _table_of(found))


if __name__ == "__main__":
    main()
