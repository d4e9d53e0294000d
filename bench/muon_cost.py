"""CPU time of Muon's update, against AdamW's of the same network and against the whole step.

    OMP_NUM_THREADS=1 python bench/muon_cost.py
    OMP_NUM_THREADS=1 python bench/muon_cost.py --cases demo-modern --rounds 40

A round has one forward and backward pass of one micro-batch, then an update by AdamW and one by
Muon with the same gradients, each in CPU time of all threads. The result is the median of all
rounds. FLOPs are those of model/estimates/updates.py, as model/cost.py prints them. Prints
Markdown and writes one JSON file.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.bare_run import BARE, NETWORKS, bare_learner
from bench.provenance import RESULTS, provenance
from model.estimates.flops import training_flops_per_token
from parallel.ranks import Ranks, silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.optimizers.registry import build_optimizer, update

_CASES = {"demo-modern": 16, "30M-modern": 4, "modern": 1}  # windows of a micro-batch
_DEMO_IDS = 4096
_BATCH = 524_288  # tokens of a step of the preset
_LR = 1e-5
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Time the updates of both optimizers, and the passes between them."""

    cases: tuple[str, ...] = tuple(_CASES)
    """Networks by name."""
    rounds: int = 10
    """Rounds of each; of modern, a third as many."""
    out: Path = RESULTS / "muon_cost.json"
    """Result file."""


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of all threads."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _measure(name: str, rounds: int, ranks: Ranks) -> dict[str, Any]:
    """CPU seconds of passes and updates of one network, and the FLOPs of both."""
    windows, network = _CASES[name], NETWORKS[name]
    if name == "demo-modern":
        network = replace(network, vocab_size=_DEMO_IDS)
    tokens = windows * network.context_length
    config = replace(BARE, model=network, batch_tokens=tokens, micro_batch=windows, device="cpu")
    learner = bare_learner(config, ranks)
    kinds = {"adamw": AdamWConfig(lr=_LR), "muon": MuonConfig(lr=_LR)}
    optimizers = {kind: build_optimizer(learner.model, kinds[kind]) for kind in kinds}
    ids = torch.randint(network.vocab_size, (windows, network.context_length + 1))

    def passes() -> None:
        learner.model.zero_grad(set_to_none=True)
        learner.step_model(ids[:, :-1], ids[:, 1:]).backward()

    found: dict[str, list[float]] = {"passes": [], "adamw": [], "muon": []}
    for number in range(1 + rounds):  # the first one warms up and is dropped
        found["passes"].append(_seconds(passes))
        for kind, optimizer in optimizers.items():
            one = partial(update, optimizer, number, _LR, torch.zeros(()))
            found[kind].append(_seconds(one))
    medians = {part: statistics.median(times[1:]) for part, times in found.items()}
    flops = kinds["muon"].update_cost(network, "cpu").flops
    return {
        "network": name,
        "tokens": tokens,
        "cpu_seconds": {part: times[1:] for part, times in found.items()},
        "median": medians,
        "update_flops": flops,
        "update_share_of_flops": _share(flops, training_flops_per_token(network) * tokens),
        "update_share_of_cpu_time": _share(medians["muon"], medians["passes"]),
        # As many micro-batches as the preset's batch has, and one update.
        "update_share_of_cpu_time_at_524288_tokens": _share(
            medians["muon"], medians["passes"] * _BATCH / tokens
        ),
    }


def _share(update: float, passes: float) -> float:
    return update / (update + passes)


def _row_of(row: dict[str, Any]) -> str:
    seconds = row["median"]
    muon = seconds["muon"]
    return (
        f"| {row['network']} | {row['tokens']:,} | {seconds['passes']:.3f} "
        f"| {seconds['adamw']:.4f} | {muon:.4f} | {row['update_flops'] / muon / 1e9:.0f} "
        f"| {row['update_share_of_flops']:.1%} | {row['update_share_of_cpu_time']:.1%} "
        f"| {row['update_share_of_cpu_time_at_524288_tokens']:.2%} |"
    )


def main() -> None:
    """Measure every case, print a table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        wrong = [name for name in arguments.cases if name not in _CASES]
        if wrong:
            raise ValueError(f"there is no case {wrong[0]}; choose from {', '.join(_CASES)}")
        ranks = start("cpu")
        head = provenance(("torch",)) | {"threads": torch.get_num_threads()}
        log.info(
            "| network | tokens | passes, CPU s | AdamW | Muon | GFLOP/s | of the step's FLOPs "
            "| of its CPU time | with 524,288 tokens |"
        )
        log.info("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
        rows = []
        for name in arguments.cases:
            few = max(arguments.rounds // 3, 1) if name == "modern" else arguments.rounds
            rows.append(_measure(name, few, ranks))
            log.info("%s", _row_of(rows[-1]))
            write_json(arguments.out, head | {"cases": rows})


if __name__ == "__main__":
    main()
