"""The losses of several runs in one picture: over tokens and over the time of training."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import new_file
from train.reporting.curves import scale_of_end, smoothed
from train.reporting.run_summary import Curve, RunSummary
from train.reporting.run_table import short_name
from train.reporting.setting_differences import short_value, training_differences

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
_COLORS = 10  # that are easy to tell apart
_PALE = 0.35  # of training curves, before which validation stands
_LIGHTEST = 0.9  # of the color map that is seen on white
_LONGEST_LABEL = 70
_SETTINGS_IN_LABEL = 3


def draw_runs(runs: Sequence[RunSummary], path: Path) -> None:
    """Draw training (smoothed) and validation of all runs.

    If they are validated on different tokens, only bits per byte are drawn.
    Raises: ValueError if no run has a loss yet.
    """
    in_bits = len({run.validation for run in runs}) > 1
    curves = [_curves(run, in_bits) for run in runs]
    if not any(curve.loss for pair in curves for curve in pair):
        what = "bits per byte" if in_bits else "loss"
        raise ValueError(f"no run has a {what} to draw yet; give --plot once one has a first point")
    # Costs 0.4 seconds, which only a picture should cost.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    labels = _run_labels(runs)
    wide = max(map(len, labels)) > _LONGEST_LABEL // 2
    columns = min(len(runs), 2 if wide else 4)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(12, 5 + 0.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    few = len(runs) <= _COLORS
    palette = colormaps["tab10" if few else "viridis"]
    unit, seconds = _time_unit(max(run.train_seconds for run in runs))
    for number, ((train, val), label) in enumerate(zip(curves, labels, strict=True)):
        color = palette(number if few else _LIGHTEST * number / (len(runs) - 1))
        for panel, xs in zip(
            panels, (_tokens, lambda c: [s / seconds for s in c.seconds]), strict=True
        ):
            panel.plot(xs(train), train.loss, color=color, linewidth=1, alpha=_PALE)
            panel.plot(xs(val), val.loss, color=color, marker="o", markersize=3, label=label)
    panels[0].set_ylim(*scale_of_end([(train.loss, val.loss) for train, val in curves]))
    panels[0].set_ylabel("bits per byte" if in_bits else "loss (nats per token)")
    panels[0].set_xlabel("tokens trained on")
    panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1].set_xlabel(f"time of training steps ({unit})")
    for panel in panels:
        panel.grid(alpha=0.3)
    what = "validation (dots)" if in_bits else "training (thin) and validation (dots)"
    figure.suptitle(f"{len(runs)} runs: {what}", fontsize=11)
    handles, _ = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    with new_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box takes its place
        figure.savefig(temporary, dpi=120, format=path.suffix[1:].lower() or "png")


def _run_labels(runs: Sequence[RunSummary]) -> list[str]:
    """The name of each run, with its values of settings that differ and are not in the name."""
    found = training_differences(runs)
    told = list(found)[:_SETTINGS_IN_LABEL]
    labels = []
    for number, run in enumerate(runs):
        values = (
            f"{key.split('.')[-1]} {value}"
            for key in told
            if (value := short_value(found[key][number])) not in run.name
        )
        # matplotlib leaves out what begins with _, and sets what is between two $ as formula.
        parts = [short_name(run.name), ", ".join(values)]
        text = ": ".join(filter(None, parts)).lstrip("_")
        text = text.replace("$", r"\$")
        labels.append(text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 2]}..")
    return labels


def _curves(run: RunSummary, in_bits: bool) -> tuple[Curve, Curve]:
    """What is drawn of a run: training, if it compares, and validation."""
    return (Curve(), run.bits_curve) if in_bits else (_smoothed(run.train_curve), run.val_curve)


def _tokens(curve: Curve) -> Sequence[float]:
    return curve.tokens


def _smoothed(curve: Curve) -> Curve:
    positions, means = smoothed(curve.loss)
    tokens, seconds = ([column[at] for at in positions] for column in (curve.tokens, curve.seconds))
    return Curve(tokens, seconds, means)


def _time_unit(seconds: float) -> tuple[str, float]:
    """The unit of the time axis, and its seconds."""
    for name, size in (("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return name, size
    return "seconds", 1.0
