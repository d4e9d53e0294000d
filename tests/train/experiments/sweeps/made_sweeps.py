"""Sweeps made of run folders whose losses are chosen, without training."""

import json
from pathlib import Path

from tests.made_runs import made_run
from train.experiments.sweeps.outcomes import PlannedRun

VALUES = (0.001, 0.01, 0.1)
SEEDS = (1, 2, 3)


def planned(folder: Path, value, seed, setting="optimizer.lr") -> PlannedRun:
    name = f"{setting}={value},seed={seed}"
    return PlannedRun(name, folder / name, {setting: value}, seed)


def made_sweep(folder: Path, floors, **run) -> list[PlannedRun]:
    """A finished run for each value and seed, whose last loss is `floors(value, seed)` + 0.1."""
    runs = [planned(folder, value, seed) for seed in SEEDS for value in VALUES]
    for one in runs:
        made_run(one.path, floor=floors(one.settings["optimizer.lr"], one.seed), **run)
        one.log.write_text("finished at step 40\n")
    return runs


def diverge(run: PlannedRun, step: int = 20) -> None:
    """Let the training loss of a made run be 50 nats from a step on."""
    path = run.path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[step:]:
        line["train/loss"] = 50.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def set_state(run: PlannedRun, state: str, reason: str = "") -> None:
    """What status.json says of a run."""
    status = {"state": state, "step": 40, "reason": reason}
    (run.path / "status.json").write_text(json.dumps(status))
