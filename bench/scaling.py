"""Predicts step time and efficiency on 1 to 64 GPUs from the step time on one GPU.

    python bench/scaling.py --step-seconds 1.073 --source "assumed: the public best on one H200"
    python bench/scaling.py --step-seconds 1.073 --source "..." --update-seconds 0.003 --check 2 4
    python bench/scaling.py --step-seconds 0.9 --source "results/h200_fused.json" \
        --nvlink-gbytes 400 --network-gbytes 42

All printed times are predictions of the model in bench/scaling_model.py. `--check N` tests a part
of it on this machine's CPU, without a GPU: N gloo processes compute, then all-reduce gradients of
three sizes. Bandwidth and latency of the link are fitted to the smallest and the largest gradient.
The step with the middle one is predicted and measured. The check tests how time depends on bytes
and latency. It does not test efficiency, overlap or a real network.
Prints Markdown and writes one JSON file and one plot.
"""

import itertools
import logging
import os
import socket
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench.figure import figure
from bench.provenance import RESULTS, provenance
from bench.scaling_model import (
    NETWORKS,
    NVLINK,
    Link,
    Workload,
    efficiency,
    ring_seconds,
    step_seconds,
    tree_step_seconds,
)
from model.estimates.parameters import count_parameters
from model.shapes import SHAPES
from parallel.ranks import silence_other_ranks, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options

_OUT = RESULTS / "scaling.json"
_GPUS = (1, 2, 4, 8, 16, 32, 64)
# One node of 8 H100 or H200 against one GPU, calculated from the logs of two trainers of 124M
# parameters (https://github.com/KellerJordan/modded-nanogpt, records/track_1_short and track_3).
_PUBLIC_8 = (0.93, 0.947)
SMALL, MIDDLE, LARGE = 1 << 12, 1 << 22, 1 << 24  # float32 elements of the check's gradients
_REPEATS = 15  # of each part of the check
_MATRIX_SIZE = 768  # of the matrix products that are the check's compute

log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Predict how a training step scales to several GPUs."""

    step_seconds: float
    """Seconds of one optimizer step on one GPU."""
    source: str
    """Source of step_seconds in words: a results file, or an assumption. The plot shows it."""
    update_seconds: float = 0.0
    """Seconds of step_seconds for clipping and the optimizer."""
    micro_steps: int = 8
    """Micro-steps of the step on one GPU."""
    shape: str = "gpt2"
    """Model shape by name."""
    per_node: int = 8
    """GPUs of a node."""
    nvlink_gbytes: float | None = None
    """Measured all-reduce bus bandwidth inside a node in GB/s; default: the model's assumption."""
    network_gbytes: float | None = None
    """Measured all-reduce bus bandwidth of a port in GB/s; default: ports of 200 and 400 Gb/s."""
    check: tuple[int, ...] = ()
    """Numbers of gloo processes to check the model with, such as 2 4."""
    out: Path = _OUT
    """Result file; the plot is written beside it."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape}; choose from {', '.join(SHAPES)}")
        if not 0 <= self.update_seconds < self.step_seconds:
            raise ValueError(
                f"update_seconds={self.update_seconds} must be a part of "
                f"step_seconds={self.step_seconds}; use 0 <= update_seconds < step_seconds"
            )
        if not self.source.strip():
            raise ValueError("source is empty; give the source of step_seconds, or the assumption")
        if any(number < 2 for number in self.check):
            raise ValueError(f"check={self.check} needs 2 or more processes; try --check 2 4")


def _predictions(arguments: Arguments) -> list[dict[str, Any]]:
    """A row for each network, way to sum gradients (DDP with and without overlap) and GPUs."""
    counts = count_parameters(SHAPES[arguments.shape])
    work = Workload(
        arguments.step_seconds,
        arguments.micro_steps,
        counts.total,
        counts.token_embedding,
        arguments.update_seconds,
    )
    node, networks = NVLINK, NETWORKS
    if arguments.nvlink_gbytes is not None:
        node = Link(arguments.nvlink_gbytes * 1e9, NVLINK.latency)
    if arguments.network_gbytes is not None:
        latency = next(iter(NETWORKS.values())).latency
        networks = {"measured": Link(arguments.network_gbytes * 1e9, latency)}
    settings = [("ddp", *both) for both in itertools.product((False, True), repeat=2)]
    rows = []
    for name, network in networks.items():
        for reduction, overlap, compressed in [*settings, ("tree", False, False)]:
            for gpus in _GPUS:
                where = work, gpus, arguments.per_node, node, network
                tree = reduction == "tree"
                took = (
                    tree_step_seconds(*where) if tree else step_seconds(*where, overlap, compressed)
                )
                rows.append(
                    {
                        "network": name,
                        "reduction": reduction,
                        "overlap": overlap,
                        "compressed": compressed,
                        "gpus": gpus,
                        "step_seconds": took,
                        "efficiency": efficiency(arguments.step_seconds, took, gpus),
                    }
                )
    return rows


def _rank(rank: int, ranks: int, port: int, found: Any) -> None:
    """One process of the check. Rank 0 puts the median times of all parts into `found`."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", address, rank=rank, world_size=ranks, timeout=timedelta(seconds=300)
    )
    a = torch.randn(_MATRIX_SIZE, _MATRIX_SIZE)
    gradients = {size: torch.ones(size) for size in (SMALL, MIDDLE, LARGE)}

    def compute() -> None:
        for _ in range(8):
            torch.mm(a, a)

    def step() -> None:
        compute()
        dist.all_reduce(gradients[MIDDLE])

    works = {size: lambda g=gradient: dist.all_reduce(g) for size, gradient in gradients.items()}
    times: dict[str, list[float]] = {}
    for repeat in range(_REPEATS + 1):
        for name, work in {"compute": compute, "step": step, **works}.items():
            dist.barrier()
            begin = time.perf_counter()
            work()
            dist.barrier()  # a step ends when the slowest rank has ended it
            if repeat:
                times.setdefault(str(name), []).append(time.perf_counter() - begin)
    if rank == 0:
        found.put({name: statistics.median(took) for name, took in times.items()})
    dist.barrier()
    dist.destroy_process_group()


def _check(ranks: int) -> dict[str, Any]:
    """Predict and measure a step with gloo on `ranks` processes of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, (ranks, port, found), nprocs=ranks)  # type: ignore[attr-defined]
    return fit_and_predict(found.get(), ranks)


def fit_and_predict(took: dict[str, float], ranks: int) -> dict[str, Any]:
    """The link fitted to the smallest and largest all-reduce, and the step that it predicts."""
    small, large = took[str(SMALL)], took[str(LARGE)]
    unit = Link(1.0, 0.0)  # with one byte per second, the seconds are the bytes that a rank moves
    moved = ring_seconds(4 * LARGE, ranks, unit) - ring_seconds(4 * SMALL, ranks, unit)
    bandwidth = moved / max(large - small, 1e-9)
    bytes_only = ring_seconds(4 * SMALL, ranks, Link(bandwidth, 0.0))
    link = Link(bandwidth, max(0.0, small - bytes_only) / (2 * (ranks - 1)))
    exchange = ring_seconds(4 * MIDDLE, ranks, link)
    predicted = took["compute"] + exchange
    cores = os.cpu_count() or 1
    return {
        "processes": ranks,
        "cores": cores,
        "oversubscribed": ranks > cores,
        "link": asdict(link),
        "measured_seconds": took,
        "predicted_step": predicted,
        "measured_step": took["step"],
        "ratio": predicted / took["step"],
        "exchange_ratio": exchange / took[str(MIDDLE)],
    }


def _table_of(rows: list[dict[str, Any]], checks: list[dict[str, Any]], basis: str) -> str:
    """Predictions and checks as Markdown."""
    lines = [
        "| network | reduction | overlap | bf16 | " + " | ".join(map(str, _GPUS)) + " |",
        "| --- | --- | --- | --- |" + " --: |" * len(_GPUS),
    ]
    for start in range(0, len(rows), len(_GPUS)):
        group = rows[start : start + len(_GPUS)]
        first = group[0]
        words = [
            *(first["network"], first["reduction"]),
            *("yes" if first[k] else "no" for k in ("overlap", "compressed")),
        ]
        cells = [f"{1e3 * r['step_seconds']:.1f} ({r['efficiency']:.0%})" for r in group]
        lines.append("| " + " | ".join(words + cells) + " |")
    lines.append(f"\nPredicted milliseconds of one step (efficiency) by number of GPUs; {basis}.")
    for found in checks:
        lines.append(
            f"gloo, {found['processes']} processes on {found['cores']} cores: predicted "
            f"{1e3 * found['predicted_step']:.1f} ms, measured "
            f"{1e3 * found['measured_step']:.1f} ms, error {found['ratio'] - 1:+.0%}, "
            f"of the all-reduce alone {found['exchange_ratio'] - 1:+.0%}"
            f"{'; the processes wait for cores' if found['oversubscribed'] else ''}."
        )
    return "\n".join(lines)


def _plot(rows: list[dict[str, Any]], basis: str, file: Path) -> None:
    """Plot efficiency over GPUs, a line for each network and setting."""
    with figure(file, (7.5, 5)) as (axes,):
        for start in range(0, len(rows), len(_GPUS)):
            group = rows[start : start + len(_GPUS)]
            first = group[0]
            label = f"{first['network']}{', overlap' if first['overlap'] else ''}"
            label += ", bf16 gradients" if first["compressed"] else ""
            label += ", tree" if first["reduction"] == "tree" else ""
            style = ":" if first["reduction"] == "tree" else "--" if first["compressed"] else "-"
            axes.plot(_GPUS, [100 * r["efficiency"] for r in group], style, marker=".", label=label)
        low, high = (100 * share for share in _PUBLIC_8)
        axes.plot([8, 8], [low, high], "k", linewidth=4, label="other trainers on 8 GPUs")
        axes.set_xscale("log", base=2)
        axes.set_xticks(_GPUS, [str(n) for n in _GPUS])
        axes.set(xlabel="GPUs", ylabel="efficiency, % (predicted)", ylim=(0, 102))
        axes.set_title(f"A prediction, not a measurement. {basis}", fontsize=8)


def main() -> None:
    """Check the model if requested, predict, report."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        origin = provenance(("torch",))
        checks = [_check(ranks) for ranks in arguments.check]
        rows = _predictions(arguments)
        basis = f"one GPU: {arguments.step_seconds:g} s a step ({arguments.source})"
        log.info("%s", _table_of(rows, checks, basis))
        settings = asdict(arguments) | {"out": arguments.out.name}
        report = origin | {
            "basis": basis,
            "settings": settings,
            "checks": checks,
            "predictions": rows,
        }
        write_json(arguments.out, report)
        _plot(rows, basis, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
