"""The table at the end of a run."""

import logging
from pathlib import Path
from typing import Any

import torch

from storage.json_lines import column, read_thinned_metrics
from storage.terminal.quantities import short
from storage.writers.console_rows import name_of
from train.guards.band.area import band_areas
from train.optimizers.registry import optimizer_name
from train.reporting.best_checkpoint import best_rows
from train.reporting.last_screen import curve_end, next_commands, sample_files, shown_samples
from train.reporting.loss_curve import draw_loss_curve
from train.run import Run

_SMOOTHED_STEPS = 20
_MISSING = "not measured"
_LINES_READ = 20_000  # of a long run: more are no more points in a picture
_WHOLE = (b'"val/', b"/acc")
log = logging.getLogger(__name__)


def _summary(run: Run, lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The rows of the closing table."""
    _, train = column(lines, "train/loss")
    _, val = column(lines, "val/loss")
    _, bits = column(lines, "val/bits_per_byte")
    entropy = run.data.unigram_entropy_nats
    recent = train[-_SMOOTHED_STEPS:]
    rate = run.progress.tokens_per_second
    tags = sorted({k for line in lines for k in line if k.endswith(("/acc", "/acc_norm"))})
    scores = [(tag, found[-1]) for tag in tags if (found := column(lines, tag)[1])]
    loss = f"{sum(recent) / max(len(recent), 1):.4f} (mean of the last {len(recent)} steps)"
    return [
        ("steps", f"{run.step:,} of {run.steps:,}"),
        ("tokens", f"{run.tokens:,}"),
        ("training loss", loss if recent else "no step done"),
        ("validation loss", f"{val[0]:.4f} -> {val[-1]:.4f} nats per token" if val else _MISSING),
        *([("its last points", f"{curve_end(lines)} (step)")] if len(val) > 2 else []),
        ("unigram entropy", f"{entropy:.4f} nats per token (counting words alone)"),
        ("bits per byte", f"{bits[-1]:.4f}" if bits else _MISSING),
        *((name_of(tag), f"{score:.4f}") for tag, score in scores),
        ("tokens per second", f"{rate:,.0f} (all ranks)" if rate else "too few steps to say"),
        *_memory_rows(run),
        ("run folder", str(run.folder.path)),
        ("checkpoint", str(run.folder.checkpoints / "latest")),
        *best_rows(run),
        *run.progress.band.rows(),
        *([("samples", str(run.folder.samples))] if sample_files(run.folder.samples) else []),
        ("loss curve", str(run.folder.path / "loss.png")),
        # At the end of the run the commands below name it.
        *([] if _has_ended(run) else [("TensorBoard", f"tensorboard --logdir {run.folder.path}")]),
    ]


def _has_ended(run: Run) -> bool:
    return run.step >= run.steps or run.stopped_improving


def _memory_rows(run: Run) -> list[tuple[str, str]]:
    """Peak GPU memory of this rank; nothing on the CPU."""
    device = run.ranks.device
    if device.type != "cuda":
        return []
    allocated, reserved = (
        peak(device) / 2**30
        for peak in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    )
    return [
        ("peak GPU memory", f"{allocated:.1f} GiB allocated, {reserved:.1f} GiB reserved (rank 0)")
    ]


def write_report(run: Run) -> str:
    """Draw `loss.png` and return the last screen: the closing table, samples, what is next."""
    lines = read_thinned_metrics(run.folder.metrics, _LINES_READ, _WHOLE)
    path = run.folder.path / "loss.png"
    try:
        entropy = run.data.unigram_entropy_nats
        areas = band_areas(run.progress.band.band, run.plan.tokens)
        draw_loss_curve(lines, entropy, path, _title(run), areas)
    except Exception as error:  # a full disk, or a broken matplotlib
        log.error("%s could not be drawn (%s: %s)", path, type(error).__name__, error)
    rows = _summary(run, lines)
    width = max(len(name) for name, _ in rows)
    table = "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
    parts = [table]
    try:
        parts.append(_titled("samples", shown_samples(run.folder.samples)))
    except OSError as error:
        log.error("the samples could not be shown (%s)", error)
    if _has_ended(run):
        parts.append(_titled("what next", next_commands(run, lines)))
    return "\n\n".join(filter(None, parts))


def _title(run: Run) -> str:
    """What the loss curve says of the run's settings."""
    optimizer = run.config.optimizer
    parameters = short(sum(p.numel() for p in run.model.parameters()))
    return (
        f"{parameters} parameters, {optimizer_name(optimizer)} at rate {optimizer.lr:g}, "
        f"batches of {run.plan.tokens:,} tokens"
    )


def _titled(title: str, text: str) -> str:
    return f"{title}:\n{text}" if text else ""


def finished_notice(out: Path, steps: int, last_step: int) -> str:
    """What to say when there is nothing left to do. A run may have stopped before its `steps`."""
    if last_step < steps:
        return (
            f"{out} is finished: at step {last_step} of {steps} its validation had stopped "
            f"improving, and {out}/checkpoints/best is its best checkpoint. To train on, give a "
            "larger --stop-when-worse and --allow stop_when_worse. To train anew, move that folder "
            "away or give another one with --out"
        )
    return (
        f"{out} is finished ({steps} steps). To train longer, give a larger --steps and --allow "
        "steps; the start then says what the learning rate will do. To train anew, move that "
        "folder away or give another one with --out"
    )
