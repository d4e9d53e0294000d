"""Time that a step waits for a checkpoint, and time until the checkpoint is on disk.

    python bench/save_stall.py --data data/python_docs
    python bench/save_stall.py --data data/python_docs --shape demo --no-rehearsal

It builds a run as the trainer does, calls the trainer's `save`, and waits for each checkpoint. A
dry run (the `--rehearsal`) allocates the memory of the copy; a resumed run has no dry run and
allocates it at the first save. On CUDA a step waits only for the launch of the copy. The copy runs
during the next step, whose update waits for it (`copied_ms`). Prints Markdown and writes one JSON
file.
"""

import logging
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from bench.bare_run import BARE
from bench.provenance import RESULTS, provenance
from model.shapes import SHAPES
from parallel.ranks import silence_other_ranks, start, user_errors
from storage.atomic import write_json
from storage.retention import SaveConfig
from storage.script_options import parse_options
from train.build import build_run
from train.preflight.dry_run import dry_run, training_step
from train.preflight.inputs import check_inputs
from train.run import Run
from train.saving import save

_PERIOD_SECONDS = 120.0  # from one save to the next, the trainer's default
log = logging.getLogger("train")


@dataclass(frozen=True)
class Arguments:
    """Save a run several times and time each save."""

    data: Path = Path("data/python_docs")
    """Data set folder with GPT-2's tokenizer."""
    shape: str = "gpt2"
    """Model shape by name."""
    rehearsal: bool = True
    """Save as after the first start of a run; --no-rehearsal: as after a resume."""
    saves: int = 6
    """Checkpoints to write."""
    scratch: Path | None = None
    """Folder on the disk to write to; default: the system's temporary folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the weights and moments."""
    out: Path | None = None
    """Result file; default: bench/results/save_stall_SHAPE_FRESH-OR-RESUMED.json."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"there is no shape {self.shape}; choose from {', '.join(SHAPES)}")
        if self.saves < 2:
            raise ValueError(f"saves={self.saves} is too small; use 2 or more")


def _measured_run(arguments: Arguments, folder: Path) -> Run:
    """A run with weights and moments, after a dry run or after one training step."""
    network = SHAPES[arguments.shape]
    config = replace(
        BARE,
        data=(arguments.data,),
        out=folder / "run",
        steps=10**6,
        batch_tokens=network.context_length,
        micro_batch=1,
        device=arguments.device,
        compile="off",
        model=network,
        save=SaveConfig(every_minutes=0, keep=1, keep_best=0),
    )
    ranks = start(arguments.device)
    run = build_run(config, ranks, check_inputs(config, ranks))
    if arguments.rehearsal:
        dry_run(run)
    else:
        training_step(run)
    return run


def timed_save(run: Run) -> dict[str, float]:
    """Save as after another step; the time that a step waits, and until the files are durable."""
    run.learner.updates += 1
    run.cursor = replace(run.cursor, updates=run.learner.updates)
    if run.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    wall, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
    save(run)
    stall, stall_cpu = time.perf_counter() - wall, time.thread_time() - thread
    run.saver.host_copy.wait()
    copied = time.perf_counter() - wall
    run.saver.wait_or_raise()
    files = run.folder.checkpoint(run.step).rglob("*")
    return {
        "stall_ms": 1000 * stall,
        "copied_ms": 1000 * copied,
        "stall_cpu_ms": 1000 * stall_cpu,
        "durable_seconds": time.perf_counter() - wall,
        "writing_cpu_seconds": time.process_time() - process - stall_cpu,
        "bytes": sum(path.stat().st_size for path in files if path.is_file()),
    }


def summary(saves: list[dict[str, float]]) -> dict[str, Any]:
    """The first save, the median of the later ones, and their share of the time between saves."""
    first, later = saves[0], saves[1:]
    usual = {key: statistics.median(one[key] for one in later) for key in first}
    share = usual["stall_ms"] / 1000 / _PERIOD_SECONDS
    return {"first": first, "later_median": usual, "share_every_two_minutes": share}


def table_of(found: dict[str, Any]) -> str:
    """The first save and the later ones as Markdown."""
    rows = [
        "| | the step waits, ms | of CPU time, ms | durable after, s | writing, CPU s | MB |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name, key in (("first save", "first"), ("later, median", "later_median")):
        one = found[key]
        rows.append(
            f"| {name} | {one['stall_ms']:.1f} | {one['stall_cpu_ms']:.1f} "
            f"| {one['durable_seconds']:.2f} | {one['writing_cpu_seconds']:.2f} "
            f"| {one['bytes'] / 1e6:.1f} |"
        )
    share = found["share_every_two_minutes"]
    return "\n".join([*rows, "", f"{share:.3%} of the time, with a save every two minutes"])


def main() -> None:
    """Save several times, print a table, write the JSON file."""
    silence_other_ranks()
    with user_errors():
        arguments = parse_options(Arguments, description=__doc__)
        origin = provenance(("torch", "safetensors"))
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            run = _measured_run(arguments, Path(folder))
            saves = [timed_save(run) for _ in range(arguments.saves)]
            run.close()
    settings = {"shape": arguments.shape, "rehearsal": arguments.rehearsal}
    found = summary(saves)
    log.info("%s", table_of(found))
    name = f"save_stall_{arguments.shape}_{'fresh' if arguments.rehearsal else 'resumed'}.json"
    write_json(arguments.out or RESULTS / name, origin | settings | found | {"saves": saves})


if __name__ == "__main__":
    main()
