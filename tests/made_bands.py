"""Bands and metric lines made of a formula, without training."""

import random
from dataclasses import replace
from pathlib import Path

from storage.json_lines import append_line
from tests.made_runs import made_run
from train.guards.band.marks import (
    FIGURES,
    HELD_OUT_LOSS,
    TRAIN_LOSS,
    digest_at,
    figures_at,
    marked_steps,
)
from train.guards.band.record import Band, SeedCurve

STEPS = 100
MADE = {"torch": "2.13.0+cpu", "device": "cpu", "dtype": "float32"}
RECIPE = {"optimizer.name": "muon", "optimizer.lr": 0.012, "batch_tokens": 2048}
NOISE = 0.05  # of the loss of a step
ROUNDING = 1e-4


def made_lines(seed: int, above: float = 0.0, tokens_of: int | None = None) -> list[dict]:
    """The metric lines of a sound run; its loss is `above` higher from step 20 on."""
    draw = random.Random(seed).gauss
    lines = []
    for step in range(STEPS + 1):
        loss = 3 + 4 / (1 + step / 10) + (above if step >= 20 else 0.0)
        line: dict = {"step": step}
        if step < STEPS:
            digest = f"{seed if tokens_of is None else tokens_of:08x}{step:08x}"
            line |= {TRAIN_LOSS: loss + draw(0, NOISE), "train/grad_norm": 1 + draw(0, NOISE)}
            line |= {"data/digest": digest, "train/skipped": 0}
        if step % 10 == 0:
            line[HELD_OUT_LOSS] = loss + draw(0, NOISE / 5)
        lines.append(line)
    return lines


def curve_of(lines: list[dict]) -> SeedCurve:
    """What the lines say at the marks."""
    by_step = {line["step"]: line for line in lines}
    rows = [figures_at(mark, by_step) for mark in marked_steps(STEPS)]
    figures = {figure: [row.get(figure) for row in rows] for figure in FIGURES}
    return SeedCurve(figures, [digest_at(mark, by_step) for mark in marked_steps(STEPS)])


def made_band(seeds: int = 10, **changes) -> Band:
    """A band of sound runs with the seeds 1, 2 and so on, whose rounding is known."""
    marks = marked_steps(STEPS)
    band = Band(
        name="made",
        command="python train/main.py demo",
        data_fingerprint="a" * 64,
        recipe=RECIPE,
        steps=STEPS,
        val_tokens=1024,
        made=MADE,
        marks=marks,
        seeds={seed: curve_of(made_lines(seed)) for seed in range(1, seeds + 1)},
        rounding={figure: [ROUNDING] * len(marks) for figure in FIGURES},
        rounding_counts=(4,) * len(marks),
    )
    return replace(band, **changes)


def band_run(path: Path, seed: int, state: str = "finished", **settings) -> Path:
    """A run folder with the golden configuration and such lines."""
    names = {name.replace("__", "."): value for name, value in settings.items()}
    made_run(path, STEPS, state=state, settings={"seed": seed, **names})
    lines = made_lines(seed)
    kept = lines if state == "finished" else lines[: STEPS // 2]
    (path / "metrics.jsonl").unlink()
    for line in kept:
        append_line(path / "metrics.jsonl", line)
    return path
