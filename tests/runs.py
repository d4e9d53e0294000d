"""Small training runs for tests: a tiny model on a tiny data set takes seconds on a CPU."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from eval.training_config import EvalConfig, SampleConfig
from model.config import GPTConfig
from model.shapes import SHAPES
from parallel.ranks import Ranks, start
from storage.retention import SaveConfig
from storage.run_folder import RunFolder
from tests.launching import REPO
from train.build import build_run
from train.config import Config
from train.loop import train
from train.optimizers.adamw import AdamWConfig
from train.optimizers.muon import MuonConfig
from train.preflight.inputs import check_inputs
from train.presets import PRESETS
from train.run import Run
from train.schedule import ScheduleConfig

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=16, context_length=16)
NANO = GPTConfig(n_layer=1, n_head=1, n_embd=8, context_length=16)
MODERN = replace(SHAPES["modern"], n_layer=2, n_head=2, n_embd=16, context_length=16)
RECIPES = {
    "gpt2": {},
    "modern": {
        "model": MODERN,
        "optimizer": PRESETS["modern"].optimizer,
        "schedule": PRESETS["modern"].schedule,
    },
}
"""What changes `tiny_config` or `nano_config` into a run of each recipe."""
GOLDEN = REPO / "tests" / "golden" / "format_1"
KEEP_ALL = SaveConfig(every=2, every_minutes=0, keep=99)


def tiny_config(data: Path, out: Path, **changes) -> Config:
    """A run of eight steps of 128 tokens without evaluation, samples and periodic saves."""
    config = Config(
        data=(data,),
        out=out,
        steps=8,
        batch_tokens=128,
        micro_batch=2,
        device="cpu",
        model=SHAPE,
        optimizer=AdamWConfig(lr=1e-2),
        schedule=ScheduleConfig(warmup_steps=2),
        eval=EvalConfig(every=0, val_tokens=64, tasks_every=0, tasks=()),
        sample=SampleConfig(every=0, max_tokens=4),
        save=SaveConfig(every_minutes=0),
    )
    return replace(config, **changes)


def nano_config(folder: Path, **changes) -> Config:
    """The same with a smaller model and 300 token ids: a step takes a few milliseconds.

    The data set is copied to `folder`/data, and the run is `folder`/run.
    """
    if not (folder / "data").exists():
        shutil.copytree(GOLDEN / "data_set", folder / "data")
    return tiny_config(folder / "data", folder / "run", **{"model": NANO} | changes)


def alone() -> Ranks:
    """The `Ranks` of a single process."""
    return start("cpu")


def built(config: Config) -> Run:
    """Build a run in this process, ready for its next step."""
    ranks = alone()
    return build_run(config, ranks, check_inputs(config, ranks))


def stopped_at(tmp_path, step):
    """A run that has done so many of its steps."""
    run = built(nano_config(tmp_path, steps=8))
    run.steps = step
    train(run)
    return run


def set_step(run: Run, step: int) -> None:
    """Make a run believe that it has done `step` updates."""
    run.learner.updates, run.cursor = step, replace(run.cursor, updates=step)


def run_to_end(config: Config) -> Run:
    """Build a run in this process and train it; returns it closed."""
    run = built(config)
    try:
        state = train(run)
        run.folder.write_status(state, run.step)
    finally:
        run.close()
    return run


def losses(folder: Path) -> list[float]:
    """The training loss of every step, exactly as logged."""
    return [line["train/loss"] for line in lines(folder) if "train/loss" in line]


def lines(folder: Path) -> list[dict]:
    """The metric lines of a run folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def flags(config: Config, *more: str) -> list[str]:
    """The command line that starts the same run with `train/main.py`."""
    shape, save = config.model, config.save
    return [
        "train/main.py",
        "modern" if isinstance(config.optimizer, MuonConfig) else "gpt2",
        *("--data", *map(str, config.data), "--out", str(config.out), "--device", "cpu"),
        *("--steps", str(config.steps), "--batch-tokens", str(config.batch_tokens)),
        *("--micro-batch", str(config.micro_batch), "--optimizer.lr", str(config.optimizer.lr)),
        *("--schedule.warmup-steps", str(config.schedule.warmup_steps)),
        *("--model.n-layer", str(shape.n_layer), "--model.n-head", str(shape.n_head)),
        *("--model.n-embd", str(shape.n_embd), "--context-length", str(shape.context_length)),
        *("--eval.every", str(config.eval.every), "--eval.val-tokens", "64"),
        *("--eval.tasks-every", str(config.eval.tasks_every), "--sample.every", "0"),
        *("--save.every", str(save.every), "--save.every-minutes", "0"),
        *more,
    ]


def forget_after(folder: Path, step: int) -> None:
    """Leave the run as a kill -9 after `step` would: remove the later checkpoints."""
    run = RunFolder(folder)
    for checkpoint in run.all_checkpoints():
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)
    run.write_status("running", step)


def final_bytes(folder: Path) -> list[bytes]:
    """Weights and optimizer state of the newest checkpoint, as bytes."""
    latest = folder / "checkpoints" / "latest"
    return [(latest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def starts(folder: Path) -> list[int]:
    """The step at which each start of the run began."""
    found = (folder / "starts.jsonl").read_text().splitlines()
    return [json.loads(line)["started_at_step"] for line in found]


def deterministic(line: dict) -> dict:
    """A metric line without the speeds, which differ from run to run."""
    return {key: value for key, value in line.items() if not key.startswith("speed/")}
