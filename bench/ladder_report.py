"""Tables and the picture of bench/ladder.py."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from bench.figure import figure
from bench.ladder_plan import Rung
from bench.ladder_results import Check, Ladder

_GOAL = 0.03  # nats per token between forecast and measurement


def summary(rungs: Sequence[Rung], ladder: Ladder, measured: Sequence[float]) -> dict[str, Any]:
    """The result as JSON values; the last of the rungs is the one that was foretold."""
    sizes = [
        {
            "size": rung.name,
            "parameters": rung.parameters,
            "steps": rung.steps,
            "tokens": rung.tokens,
            "flops": rung.flops,
            "losses": list(losses),
        }
        for rung, losses in zip(rungs, (*ladder.losses, measured), strict=True)
    ]
    draws = [
        {
            "seed": forecast.seed,
            "floor": forecast.line.floor,
            "exponent": forecast.line.exponent,
            "noise": forecast.line.scatter.noise,
            "misfit": forecast.line.scatter.misfit,
            "foretold": forecast.loss,
            "half_width": forecast.half_width,
            "measured": found,
            "error": forecast.loss - found,
        }
        for forecast, found in zip(ladder.forecasts, (*measured, fmean(measured)), strict=True)
    ]
    within = sum(abs(draw["error"]) <= _GOAL for draw in draws[:-1])
    check = None if ladder.check is None else asdict(ladder.check)
    return {"sizes": sizes, "draws": draws, "check": check, "within_0.03_nats": within}


def check_sentence(name: str, check: Check) -> str:
    """Whether the line holds among the small sizes; `name` is the largest of them."""
    said = (
        f"{name} foretold from the smaller sizes: {check.foretold:.3f} ± {check.half_width:.3f} "
        f"(95 %, mean of the seeds), measured {check.measured:.3f}"
    )
    if abs(check.error) <= _GOAL:
        return said
    return (
        f"{said}: the losses bend, so the forecast is likely to miss by as much or more; take "
        "sizes beyond the bend, a smaller step in compute, or a batch that grows with the size"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        "| size | parameters | tokens | FLOPs | validation loss by seed | mean ± deviation |",
        "| --- | --: | --: | --: | --- | --: |",
    ]
    for size in result["sizes"]:
        each = ", ".join(f"{loss:.3f}" for loss in size["losses"])
        mean = f"{fmean(size['losses']):.3f} ± {stdev(size['losses']):.3f}"
        lines.append(
            f"| {size['size']} | {size['parameters']:,} | {size['tokens']:,} | {size['flops']:.2e} "
            f"| {each} | {mean} |"
        )
    lines += [
        "",
        "| seed | exponent | E | foretold, 95 % interval | measured | difference |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for draw in result["draws"]:
        seed = "all, mean" if draw["seed"] is None else draw["seed"]
        lines.append(
            f"| {seed} | {draw['exponent']:.3f} | {draw['floor']:.2f} "
            f"| {draw['foretold']:.3f} ± {draw['half_width']:.3f} | {draw['measured']:.3f} "
            f"| {draw['error']:+.3f} |"
        )
    if result["check"]:
        name = result["sizes"][-2]["size"]
        lines += ["", f"{check_sentence(name, Check(**result['check']))}."]
    seeds = len(result["draws"]) - 1
    lines += ["", f"{result['within_0.03_nats']} of {seeds} draws within {_GOAL} nats."]
    return "\n".join(lines) + "\n"


def draw(rungs: Sequence[Rung], ladder: Ladder, measured: Sequence[float], file: Path) -> None:
    """The losses over compute, the line of all seeds with its interval, and the fifth size."""
    forecast = ladder.forecasts[-1]
    compute = np.geomspace(rungs[0].flops / 1.5, rungs[-1].flops * 1.5, 100)
    line = np.array([forecast.line.loss_at(c) for c in compute])
    wide = np.array([forecast.line.half_width(c, 1) for c in compute])
    with figure(file, (8, 5)) as (panel,):
        panel.fill_between(
            compute, line - wide, line + wide, alpha=0.2, label="95 % of single runs"
        )
        panel.plot(compute, line, linewidth=1, label="fitted to the small sizes")
        for rung, losses in zip(rungs, ladder.losses, strict=False):
            panel.plot([rung.flops] * len(losses), losses, "o", color="C0", markersize=3)
        each = ladder.forecasts[:-1]
        panel.errorbar(
            [rungs[-1].flops * 0.96] * len(each),
            [one.loss for one in each],
            [one.half_width for one in each],
            fmt="_",
            color="C1",
            linewidth=0.8,
            label="foretold, by seed",
        )
        panel.plot(
            [rungs[-1].flops * 1.04] * len(measured),
            measured,
            "x",
            color="C3",
            markersize=5,
            label="then measured",
        )
        for rung, losses in zip(rungs, (*ladder.losses, measured), strict=True):
            panel.annotate(
                rung.name, (rung.flops, max(losses)), (0, 10), textcoords="offset points"
            )
        panel.set(
            xscale="log",
            xlabel="FLOPs of the training (6N + 12LCT a token)",
            ylabel="validation loss, nats per token",
        )
