"""What `--reduction tree` costs against DDP: steps by turns, and the sum over ranks.

    python bench/reduction_cost.py
    python bench/reduction_cost.py --cases demo sum-4 --rounds 4

Steps: two ranks of one thread have two learners of the same network and batch, and take a step with
one and the other in turns: tree, ddp, ddp, tree. The sum alone: 120 MB, in the four ways that give
a sum of a defined order or are the usual one. Counted are CPU seconds of all ranks, since time by
the clock is that of whatever else runs on the machine; it is recorded too.
Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.bare_run import BARE, NETWORKS, bare_learner, uses_muon
from bench.on_ranks import run_on_ranks
from bench.provenance import RESULTS, provenance
from parallel.collectives import sum_over_ranks, swap_with
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from parallel.tree_reduction import exchanges
from storage.atomic import read_json, write_json
from storage.option_values import check_at_least
from storage.script_options import parse_options
from train.experiments.intervals import Interval, mean_interval
from train.optimizers.muon import MuonConfig
from train.step import Learner, StepBatch

_TURNS = ("tree", "ddp", "ddp", "tree")
_LR = 1e-5
_SUMMED = 30_000_000  # float32 elements: 120 MB
_DEMO_IDS = 4096
log = logging.getLogger("train")


@dataclass(frozen=True)
class _Steps:
    """A step on two ranks: network, windows of all ranks, and the micro-batch of each way."""

    network: str
    windows: int
    context_length: int
    micro_batches: dict[str, int]
    ranks: int = 2


_STEPS = {
    "demo": _Steps("demo-modern", 16, 128, {"tree": 2, "ddp": 2}),
    # What `auto` chooses on two ranks: tree leaves room for eight.
    "demo-auto": _Steps("demo-modern", 16, 128, {"tree": 2, "ddp": 8}),
    "gpt2": _Steps("gpt2", 8, 64, {"tree": 1, "ddp": 1}),
}
_SUMS = {"sum-2": 2, "sum-4": 4}
_CASES = (*_STEPS, *_SUMS)


@dataclass(frozen=True)
class Arguments:
    """Measure what a defined order of sums costs."""

    cases: tuple[str, ...] = _CASES
    """Cases by name."""
    rounds: int = 8
    """Rounds of each case: four steps, or each way to sum once. Of gpt2, half as many."""
    out: Path = RESULTS / "reduction_cost.json"
    """Result file."""
    here: bool = False
    """Used by the script itself: be one rank of one case."""

    def __post_init__(self) -> None:
        check_at_least("rounds", self.rounds, 2)
        for name in self.cases:
            if name not in _CASES:
                raise ValueError(f"there is no case {name}; choose from {', '.join(_CASES)}")


def _timed(work: Callable[[], object], ranks: Ranks) -> tuple[float, float]:
    """CPU seconds of all ranks, and seconds by the clock of this one."""
    dist.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    work()
    own = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
    clock = time.perf_counter() - began
    return float(sum_over_ranks(own)), clock


def _learner(case: _Steps, reduction: Any, ranks: Ranks) -> Learner:
    network = replace(NETWORKS[case.network], context_length=case.context_length)
    if case.network == "demo-modern":
        network = replace(network, vocab_size=_DEMO_IDS)
    config = replace(
        BARE,
        model=network,
        device="cpu",
        batch_tokens=case.windows * case.context_length,
        micro_batch=case.micro_batches[reduction],
        optimizer=MuonConfig() if uses_muon(network) else BARE.optimizer,
        reduction=reduction,
    )
    return bare_learner(config, ranks)


def _measure_steps(case: _Steps, rounds: int, ranks: Ranks) -> dict[str, Any]:
    """CPU seconds of every step of both learners."""
    learners = {name: _learner(case, name, ranks) for name in ("tree", "ddp")}
    vocabulary = learners["ddp"].model.config.vocab_size
    generator = torch.Generator().manual_seed(ranks.rank)
    shape = case.windows // ranks.world_size, case.context_length + 1
    windows = torch.randint(vocabulary, shape, generator=generator).to(torch.int16)
    batch = StepBatch(0, 0, windows)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in learners}
    for round_ in range(rounds + 1):
        for name in _TURNS:
            took = _timed(lambda name=name: learners[name].step(batch, _LR), ranks)
            if round_:  # the first round allocates moments and buffers
                found[name].append(took)
    return {"case": asdict(case)} | _seconds_of(found)


def _seconds_of(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    return {
        kind: {name: [took[place] for took in times] for name, times in found.items()}
        for place, kind in enumerate(("cpu_seconds", "clock_seconds"))
    }


def _ways_to_sum(ranks: Ranks) -> dict[str, Callable[[Tensor], object]]:
    """The sum of a tensor over ranks, in place."""
    rank, world_size = ranks.rank, ranks.world_size
    scratch = torch.empty(_SUMMED // 2 + 16)
    received = torch.empty(world_size, _SUMMED // world_size)
    stages = [1 << stage for stage in range(world_size.bit_length() - 1)]
    # Every rank makes all groups; its own pair of each stage is the one with its number.
    groups = {
        (bit, low): dist.new_group([low, low | bit])
        for bit in stages
        for low in range(world_size)
        if not low & bit
    }

    def halving(flat: Tensor) -> None:
        for exchange in exchanges(flat, rank, world_size, scratch):
            swap_with(exchange.partner, exchange.sent, exchange.received)

    def all_to_all(flat: Tensor) -> None:
        dist.all_to_all_single(received, flat.view(world_size, -1))
        sums = received
        while len(sums) > 1:
            sums = sums[0::2] + sums[1::2]
        dist.all_gather_into_tensor(flat, sums[0])

    def pairs(flat: Tensor) -> None:
        for bit in stages:
            dist.all_reduce(flat, group=groups[bit, rank & ~bit])

    return {
        "halving and doubling": halving,
        "all-to-all and all-gather": all_to_all,
        "all-reduces of pairs": pairs,
        "all-reduce": dist.all_reduce,
    }


def _measure_sums(rounds: int, ranks: Ranks) -> dict[str, Any]:
    """CPU seconds of each way to sum 120 MB, and whether its sum is right."""
    ways = _ways_to_sum(ranks)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    flat = torch.empty(_SUMMED)
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            flat.fill_(1.0 + ranks.rank)
            took = _timed(lambda way=way: way(flat), ranks)
            wanted = ranks.world_size * (ranks.world_size + 1) / 2
            assert (flat == wanted).all(), name
            if round_:
                found[name].append(took)
    return {"bytes": 4 * _SUMMED, "ranks": ranks.world_size} | _seconds_of(found)


def ratio(found: dict[str, Any], kind: str = "cpu_seconds") -> Interval:
    """Tree over DDP: the mean of the rounds' ratios, with its interval of 95 %."""
    tree, ddp = (found[kind][name] for name in ("tree", "ddp"))
    pairs = range(0, len(tree), 2)  # two steps of each in a round
    return mean_interval([sum(tree[i : i + 2]) / sum(ddp[i : i + 2]) for i in pairs])


def table_of(rows: dict[str, dict[str, Any]]) -> str:
    """Steps and sums as Markdown."""
    lines = []
    steps = {name: row for name, row in rows.items() if name in _STEPS}
    if steps:
        lines += ["| step | tree, CPU s | ddp, CPU s | tree / ddp (95 %) | rounds |"]
        lines += ["| --- | --: | --: | --: | --: |"]
    for name, row in steps.items():
        tree, ddp = (statistics.median(row["cpu_seconds"][way]) for way in ("tree", "ddp"))
        one = ratio(row)
        lines.append(
            f"| {name} | {tree:.3f} | {ddp:.3f} | {one.mean:.3f} ({one.low:.3f} to {one.high:.3f}) "
            f"| {one.count} |"
        )
    for name in (name for name in rows if name in _SUMS):
        row = rows[name]
        lines += ["", f"| sum of {row['bytes'] / 1e6:.0f} MB on {row['ranks']} ranks, median of"]
        lines[-1] += f" {len(row['cpu_seconds']['all-reduce'])} | CPU s | clock s |"
        lines += ["| --- | --: | --: |"]
        for way, seconds in row["cpu_seconds"].items():
            clock = statistics.median(row["clock_seconds"][way])
            lines.append(f"| {way} | {statistics.median(seconds):.3f} | {clock:.3f} |")
    return "\n".join(lines)


def _be_a_rank(arguments: Arguments) -> None:
    """Measure the one case as a rank of its job; rank 0 writes the result."""
    ranks = start("cpu")
    name = arguments.cases[0]
    if name in _STEPS:
        found = _measure_steps(_STEPS[name], arguments.rounds, ranks)
    else:
        found = _measure_sums(arguments.rounds, ranks)
    if ranks.is_main:
        write_json(arguments.out, found)
    stop()


def main() -> None:
    """Measure every case in processes of its own, print the tables, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        if arguments.here:
            _be_a_rank(arguments)
            return
        start("cpu")
        head, rows = provenance(("torch",)) | {"threads": 1}, {}
        for name in arguments.cases:
            ranks = _STEPS[name].ranks if name in _STEPS else _SUMS[name]
            rounds = max(2, arguments.rounds // 2) if name == "gpt2" else arguments.rounds
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "case.json"
                words = ("--here", "--cases", name, "--rounds", str(rounds), "--out", str(out))
                run_on_ranks(sys.argv[0], words, ranks, {"OMP_NUM_THREADS": "1"})
                rows[name] = read_json(out)
            write_json(arguments.out, head | {"cases": rows})
        log.info("%s", table_of(rows))


if __name__ == "__main__":
    main()
