"""Time that a run's guards cost: the training loop with and without them, and each alone.

    python bench/guard_cost.py --data data/python_docs
    torchrun --standalone --nproc_per_node=2 bench/guard_cost.py --data data/python_docs

The run alternates blocks of steps: with guards, without, without, with. Adjacent blocks that differ
give the ratio of all guards together. Adjacent blocks of the same kind give the noise. If the noise
is larger than the cost, use the times of the single guards. With several ranks, each block has one
comparison of replicas, which is far more often than in a normal run. A run of one rank has none.
Prints Markdown and writes one JSON file.
"""

import faulthandler
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import BARE, NETWORKS, check_shape
from bench.provenance import RESULTS, provenance
from parallel.collectives import broadcast_object
from parallel.ranks import Ranks, silence_other_ranks, start, stop, user_errors
from storage.atomic import write_json
from storage.records.line_digest import LineDigest
from storage.script_options import parse_options
from train.build import build_run
from train.checkpoints.host_copy import state_tensors
from train.checks import check, compare_ranks
from train.guards.replicas import checksums
from train.guards.spikes import Guard, GuardConfig
from train.loop import train
from train.preflight.inputs import check_inputs
from train.run import Run
from train.step import NO_LIMITS, VALUES, Learner, StepBatch, is_sound

_OUT = RESULTS / "guard_cost.json"
_GOAL = 0.005  # of the CPU time of a step
_PATTERN = (True, False, False, True)  # whether the guards are on, for the four blocks of a round
WARM_UP = 3  # steps before the first block
CALLS = 2000  # of one guard, to measure its own time
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Measure what the guards of a run cost."""

    data: Path = Path("data/python_docs")
    """Data set folder."""
    shape: str = "30M"
    """Model shape by name, as in train_speed.py."""
    batch: int = 8
    """Windows of a step, over all ranks."""
    block: int = 20
    """Steps of a block."""
    rounds: int = 4
    """Rounds of four blocks: with, without, without, with."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    out: Path = _OUT
    """Result file."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if self.block < 1 or self.rounds < 1:
            raise ValueError(f"block={self.block} and rounds={self.rounds} must be 1 or more")


class _Switch:
    """Removes a run's guards and restores them, by replacing the functions that the loop calls."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sound = torch.ones((), dtype=torch.bool, device=run.ranks.device)
        learner = run.learner
        self.hooks = [
            learner.step_model._forward_hooks,
            learner.optimizer._optimizer_step_post_hooks,
        ]
        self.kept = [dict(hooks) for hooks in self.hooks]

    def turn(self, on: bool) -> None:
        """Switch all guards on or off, from the next step on."""
        guard, run = self.run.progress.guard, self.run
        loop, step = train.__globals__, Learner.step.__globals__
        loop["check"] = check if on else lambda run: None
        step["is_sound"] = is_sound if on else lambda values, limits: self.sound
        for hooks, kept in zip(self.hooks, self.kept, strict=True):
            hooks.clear()
            hooks.update(kept if on else {})
        for owner, names in ((guard, ("z_scores", "record")), (run, ("heartbeat",))):
            for name in names:
                vars(owner).pop(name, None)  # from now on, calls reach the method of the class
        if not on:
            vars(guard).update(z_scores=lambda *_: {}, record=lambda *_: None)
            vars(run).update(heartbeat=lambda: None)
        run.compute_time.forget()


class Blocks:
    """Replaces the loader's `next_step`: switches the guards and takes the time at each block."""

    def __init__(self, run: Run, block: int, order: list[bool]) -> None:
        self.switch = _Switch(run)
        self.next_step = run.loader.next_step
        self.block = block
        self.order = order
        self.steps = -WARM_UP
        self.clocks: list[tuple[float, float]] = []
        run.loader.next_step = self.next_batch

    def next_batch(self) -> StepBatch:
        """The next batch. At the beginning of a block, note the time and switch the guards."""
        number, inside = divmod(self.steps, self.block)
        if self.steps >= 0 and inside == 0:
            self.clocks.append((time.perf_counter(), time.process_time()))
            if number < len(self.order):
                self.switch.turn(self.order[number])
        self.steps += 1
        return self.next_step()

    def seconds(self, clock: int) -> list[float]:
        """Seconds of a step in each block; clock 0 is wall time, 1 the CPU time of this process."""
        marks = [pair[clock] for pair in self.clocks]
        return [(b - a) / self.block for a, b in pairwise(marks)]


def _build(arguments: Arguments, ranks: Ranks, folder: Path) -> Run:
    """A run that has steps and guards, and nothing else."""
    network = NETWORKS[arguments.shape]
    steps = WARM_UP + len(_PATTERN) * arguments.rounds * arguments.block + 1
    config = replace(
        BARE,
        data=(arguments.data,),
        out=folder / "run",
        steps=steps,
        batch_tokens=arguments.batch * network.context_length,
        micro_batch=arguments.batch // ranks.world_size,
        device=arguments.device,
        model=network,
        guard=GuardConfig(every=arguments.block),
    )
    return build_run(config, ranks, check_inputs(config, ranks))


def _cpu_seconds(function: Callable[[], Any], calls: int = CALLS) -> float:
    """CPU seconds of one call in this process, the median of five series of calls."""
    tries = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(calls):
            function()
        tries.append((time.process_time() - began) / calls)
    return statistics.median(tries)


def alone(run: Run) -> dict[str, float]:
    """CPU seconds of a step that each guard takes."""
    guard = Guard(GuardConfig())
    steps = count()
    values = torch.ones(VALUES, dtype=torch.float64, device=run.ranks.device)
    state = state_tensors(run.model, run.learner.optimizer)

    def record_and_judge() -> None:
        step = next(steps)
        loss, norm = 3.0 + step % 7, 1.0 + step % 5
        guard.z_scores(step, loss, norm)
        guard.record(step, 0, loss, norm, skipped=False)

    def note_compute_time() -> None:
        run.compute_time._forward_done()
        run.compute_time._updated()

    def watch() -> None:  # a rank other than 0 has no file as its sys.stderr
        faulthandler.dump_traceback_later(600, exit=True, file=sys.__stderr__ or sys.stderr)

    lines = LineDigest.begin(0, "")
    for _ in range(guard.config.window):
        record_and_judge()

    every = GuardConfig().every
    found = {
        "finite or not": _cpu_seconds(lambda: is_sound(values, NO_LIMITS)),
        "z-scores": _cpu_seconds(record_and_judge, CALLS // 10),
        "skips, is a comparison due": _cpu_seconds(lambda: check(run)),
        "pace": _cpu_seconds(note_compute_time),
        "heartbeat": _cpu_seconds(run.heartbeat),
        "digest of the metric line": _cpu_seconds(lambda: lines.add(run.metrics.recent[-1])),
        "CUDA's watchdog": _cpu_seconds(watch),
        f"replica checksum, every {every} steps": (
            _cpu_seconds(lambda: checksums(state, run.ranks.device), 3) / every
        ),
    }
    faulthandler.cancel_dump_traceback_later()
    run.compute_time.forget()
    return found


def _compare_once(run: Run) -> float:
    """Wall seconds of one comparison of the replicas of all ranks."""
    began = time.perf_counter()
    compare_ranks(run)
    return time.perf_counter() - began


def summary(seconds: list[float]) -> dict[str, Any]:
    """The ratio with / without of adjacent blocks, and the ratio of adjacent blocks of one kind."""
    pairs = [(seconds[i], seconds[i + 1]) for i in range(0, len(seconds), 2)]
    ratios = [a / b if n % 2 == 0 else b / a for n, (a, b) in enumerate(pairs)]
    noise = [seconds[i] / seconds[i + 1] for i in range(1, len(seconds) - 1, 2)]
    return {
        "seconds_per_step": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "noise": noise,
        "median_noise": statistics.median(abs(one - 1) for one in noise),
    }


def _table_of(found: dict[str, Any]) -> str:
    """The time of each guard, and the ratio of all together, as Markdown."""
    step = found["step_cpu_seconds"]
    rows = ["| guard | CPU microseconds a step | of the step |", "| --- | --: | --: |"]
    for name, seconds in (found["alone"] | {"all": found["sum_seconds"]}).items():
        rows.append(f"| {name} | {1e6 * seconds:.1f} | {seconds / step:.4%} |")
    for name in ("wall", "cpu"):
        one = found[name]
        rows.append(
            f"\nwith / without, {name}: {one['median_ratio']:.4f} "
            f"({min(one['ratios']):.3f} to {max(one['ratios']):.3f}); adjacent blocks of the same "
            f"kind differ by {one['median_noise']:.2%} (median)"
        )
    return "\n".join([*rows, f"\ngoal: {_GOAL:.1%}"])


def _measure(arguments: Arguments, ranks: Ranks) -> dict[str, Any]:
    """Train with and without guards in blocks, then time each guard alone."""
    with tempfile.TemporaryDirectory() as folder:
        run = _build(arguments, ranks, Path(broadcast_object(folder)))
        blocks = Blocks(run, arguments.block, list(_PATTERN) * arguments.rounds)
        train(run)
        found: dict[str, Any] = {
            "wall": summary(blocks.seconds(0)),
            "cpu": summary(blocks.seconds(1)),
            "alone": alone(run),
            "comparison_wall_seconds": [_compare_once(run) for _ in range(3)],
        }
        run.close()
    found["sum_seconds"] = sum(found["alone"].values())
    found["step_cpu_seconds"] = statistics.median(found["cpu"]["seconds_per_step"])
    found["share"] = found["sum_seconds"] / found["step_cpu_seconds"]
    return found


def main() -> None:
    """Measure, print the table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        ranks = start(arguments.device)
        origin = provenance(("torch", "numpy"))
        found = _measure(arguments, ranks)
    log.info("%s", _table_of(found))
    if ranks.is_main:
        names = ("shape", "batch", "block")
        settings = {name: getattr(arguments, name) for name in names}
        settings |= {"ranks": ranks.world_size, "threads": torch.get_num_threads()}
        write_json(arguments.out, origin | settings | found)
    stop()


if __name__ == "__main__":
    main()
