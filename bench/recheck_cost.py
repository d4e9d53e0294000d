"""Time that reading the data again beside training costs a step.

    python bench/recheck_cost.py --data data/python_docs

The run alternates blocks of steps: with the reader, without, without, with, at each pace. Adjacent
blocks that differ give the ratio of a step's time, adjacent ones of the same kind the noise. The
reader's own CPU time is exact: its thread's clock. 0.5 MB/s is its pace for all data sets below
32 GB and 31 MB/s that for 2 TB. Prints Markdown and writes one JSON file.
"""

import logging
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.bare_run import BARE, NETWORKS, check_shape
from bench.provenance import RESULTS, provenance
from data_prep.dataset.recheck import Recheck
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import write_json
from storage.script_options import parse_options
from train.build import build_run
from train.loop import train
from train.preflight.inputs import check_inputs
from train.run import Run
from train.step import StepBatch

_OUT = RESULTS / "recheck_cost.json"
_GOAL = 0.005  # of a step
_PATTERN = (True, False, False, True)  # whether the reader runs, for the four blocks of a round
WARM_UP = 3  # steps before the first block
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Measure what reading the data again costs a step."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    shape: str = "30M"
    """Model shape by name, as in train_speed.py."""
    batch: int = 8
    """Windows of a step."""
    block: int = 5
    """Steps of a block."""
    rounds: int = 4
    """Rounds of four blocks: with, without, without, with."""
    megabytes: tuple[float, ...] = (0.5, 31)
    """Paces of the reader, in MB/s."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.block < 1 or self.rounds < 1 or not all(pace >= 0.5 for pace in self.megabytes):
            raise ValueError(
                f"block={self.block} and rounds={self.rounds} must be 1 or more, and the paces in "
                f"megabytes={self.megabytes} 0.5 or more"
            )


class Blocks:
    """Replaces the loader's `next_step`: starts or ends the reader at the beginning of a block."""

    def __init__(self, run: Run, block: int, order: list[float]) -> None:
        """`order` is the pace of each block in MB/s, 0 without the reader."""
        self.run = run
        self.block = block
        self.order = order
        self.reader: Recheck | None = None
        self.steps = -WARM_UP
        self.clocks: list[tuple[float, float]] = []
        self.reader_seconds: list[float] = []
        self.next_step = run.loader.next_step
        run.loader.next_step = self.next_batch

    def next_batch(self) -> StepBatch:
        """The next batch. At the beginning of a block, note the time and change the pace."""
        number, inside = divmod(self.steps, self.block)
        if self.steps >= 0 and inside == 0:
            self.clocks.append((time.perf_counter(), time.process_time()))
            if number:
                self.reader_seconds.append(self.reader.cpu_seconds if self.reader else 0.0)
            self._change_pace(self.order[number] if number < len(self.order) else 0)
        self.steps += 1
        return self.next_step()

    def _change_pace(self, megabytes: float) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader = None
        if megabytes:
            data = self.run.data.sources[0].data
            total = sum(path.stat().st_size for path in data.folder.glob("*.npy"))
            # So few hours that it never rests: the slowest pace, or this one.
            hours = total / (0.75 * 3600 * 1e6 * megabytes) if megabytes > 0.5 else 2e-3
            self.reader = Recheck(data, self.run.loader.stream.streams[0].shards, hours)
            self.reader.start()

    def seconds(self, clock: int) -> list[float]:
        """Seconds of each block; clock 0 is wall time, 1 the CPU time of this process."""
        return [b[clock] - a[clock] for a, b in pairwise(self.clocks)]


def _ratios(seconds: list[float]) -> dict[str, Any]:
    """With / without of adjacent blocks, and how much adjacent blocks of one kind differ."""
    pairs = [(seconds[i], seconds[i + 1]) for i in range(0, len(seconds), 2)]
    ratios = [a / b if n % 2 == 0 else b / a for n, (a, b) in enumerate(pairs)]
    noise = [abs(seconds[i] / seconds[i + 1] - 1) for i in range(1, len(seconds) - 1, 2)]
    return {
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "median_noise": statistics.median(noise),
    }


def _measure_pace(arguments: Arguments, ranks: Ranks, pace: float) -> dict[str, Any]:
    """Train with and without the reader in blocks."""
    network, order = NETWORKS[arguments.shape], list(_PATTERN) * arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            BARE,
            data=(arguments.data,),
            out=Path(folder) / "run",
            steps=WARM_UP + len(order) * arguments.block + 1,
            batch_tokens=arguments.batch * network.context_length,
            micro_batch=arguments.batch,
            model=network,
            data_recheck_hours=0.0,
        )
        run = build_run(config, ranks, check_inputs(config, ranks))
        blocks = Blocks(run, arguments.block, [pace * on for on in order])
        train(run)
        run.close()
    wall, cpu = blocks.seconds(0), blocks.seconds(1)
    own = [
        (reader / seconds, reader / used)
        for reader, seconds, used in zip(blocks.reader_seconds, wall, cpu, strict=True)
        if reader
    ]
    return {
        "megabytes_per_second": pace,
        "wall": _ratios(wall),
        "cpu": _ratios(cpu),
        "reader_of_a_core": statistics.median(share for share, _ in own),
        "reader_of_the_step": statistics.median(share for _, share in own),
    }


def _table_of(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| pace | reader: of one core | of the step's CPU time | step with / without, wall | CPU |",
        "| --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = (
            f"{row[clock]['median_ratio']:.4f} (noise {row[clock]['median_noise']:.2%})"
            for clock in ("wall", "cpu")
        )
        shares = f"{row['reader_of_a_core']:.3%} | {row['reader_of_the_step']:.3%}"
        lines.append(f"| {row['megabytes_per_second']:g} MB/s | {shares} | {' | '.join(times)} |")
    return "\n".join([*lines, f"\ngoal: {_GOAL:.1%} of a step"])


def main() -> None:
    """Measure, print the table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start("cpu")
        origin = provenance(("torch", "numpy"))
        rows = [_measure_pace(arguments, ranks, pace) for pace in arguments.megabytes]
    log.info("%s", _table_of(rows))
    settings = {name: getattr(arguments, name) for name in ("shape", "batch", "block")}
    write_json(
        arguments.out, origin | settings | {"threads": torch.get_num_threads(), "rows": rows}
    )
    stop()


if __name__ == "__main__":
    main()
