"""The picture of a sweep: the loss against the values, over steps and over time."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.atomic import new_file
from train.experiments.sweeps.grid import point_text, setting_text
from train.experiments.sweeps.outcomes import PointResult
from train.experiments.sweeps.sweep_report import measure_name
from train.reporting.curves import scale_of_end, smoothed

_COLORS = 10  # that are easy to tell apart
_LIGHTEST = 0.9  # of the color map that is seen on white
_MOST_LABELS = 16
_LOG_RATIO = 8.0  # of the largest to the smallest value, from which on an axis is logarithmic
_PALE = 0.35
_LONGEST_TITLE = 120
_ROOM = 0.12  # of the range of losses, above the highest, for the marks of runs that diverged


def draw_sweep(points: Sequence[PointResult], in_bits: bool, title: str, path: Path) -> None:
    """Draw what the runs have reached so far; nothing if none has finished or diverged."""
    if not any(point.losses or point.diverged for point in points):
        return
    # Costs 0.4 seconds, which only a picture should cost.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = list(points[0].settings)
    as_map = len(settings) == 2 and all(len(_values(points, key)) > 1 for key in settings)
    panels = 1 if as_map else len(settings)
    figure = Figure(figsize=(5 * (panels + 2), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(1, panels + 2)
    few = len(points) <= _COLORS
    palette = colormaps["tab10" if few else "viridis"]
    colors = [
        palette(number if few else _LIGHTEST * number / (len(points) - 1))
        for number in range(len(points))
    ]
    if as_map:
        _draw_map(figure, axes[0], points, settings, in_bits)
    else:
        for panel, key in zip(axes, settings, strict=False):
            _draw_values(panel, points, key, colors)
            panel.set_ylabel(measure_name(in_bits))
    _draw_curves(axes[-2:], points, colors, in_bits)
    figure.suptitle(title if len(title) <= _LONGEST_TITLE else f"{title[:_LONGEST_TITLE]}…")
    with new_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box takes its place
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def _values(points: Sequence[PointResult], key: str) -> list[Any]:
    """The values of a setting: numbers in their order, others as they come."""
    found = list(dict.fromkeys(point.settings[key] for point in points))
    return sorted(found) if all(map(_is_number, found)) else found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _draw_values(panel: Any, points: Sequence[PointResult], key: str, colors: list[Any]) -> None:
    """Final losses against one setting: a dot for each seed, mean and deviation of a combination.

    A run that diverged is a cross at the top.
    """
    values = _values(points, key)
    numeric = all(map(_is_number, values))
    place = {value: value if numeric else number for number, value in enumerate(values)}
    losses = [loss for point in points for loss in point.losses.values()]
    if losses:
        room = _ROOM * max(max(losses) - min(losses), 0.01)
        top = max(losses) + room
        panel.set_ylim(min(losses) - room, top + room)
    else:
        top = 1.0
    means = [(place[p.settings[key]], p.mean, p.deviation or 0.0) for p in points if p.losses]
    if len(points) == len(values):  # one setting: a line through the means
        panel.plot([x for x, _, _ in means], [y for _, y, _ in means], color="0.6", linewidth=1)
    for point, color in zip(points, colors, strict=True):
        x = place[point.settings[key]]
        ys = list(point.losses.values())
        panel.plot([x] * len(ys), ys, "o", color=color, markersize=4, alpha=0.6)
        if point.deviation is not None:
            panel.errorbar(x, point.mean, point.deviation, color=color, capsize=4, marker="_")
        if point.diverged:
            panel.plot(x, top, "x", color="red", clip_on=False)
    if numeric and values[0] > 0 and values[-1] / values[0] >= _LOG_RATIO:
        panel.set_xscale("log")
    elif not numeric:
        panel.set_xticks(range(len(values)), [setting_text(value) for value in values])
    crosses = "; x: diverged" if any(point.diverged for point in points) else ""
    panel.set_xlabel(f"{key} (dots: seeds; bars: mean ± standard deviation{crosses})")
    panel.grid(alpha=0.3)


def _draw_map(
    figure: Any, panel: Any, points: Sequence[PointResult], settings: list[str], in_bits: bool
) -> None:
    """Mean losses over two settings."""
    rows, columns = (_values(points, key) for key in settings)
    table = [[float("nan")] * len(columns) for _ in rows]
    for point in points:
        at = rows.index(point.settings[settings[0]]), columns.index(point.settings[settings[1]])
        if point.mean is not None:
            table[at[0]][at[1]] = point.mean
        text = "diverged" if point.diverged else "" if point.mean is None else f"{point.mean:.3f}"
        panel.text(at[1], at[0], text, ha="center", va="center", fontsize=8)
    image = panel.imshow(table, cmap="viridis_r", origin="lower", aspect="auto", alpha=0.7)
    figure.colorbar(image, ax=panel, label=f"mean of {measure_name(in_bits)}")
    panel.set_yticks(range(len(rows)), [setting_text(value) for value in rows])
    panel.set_xticks(range(len(columns)), [setting_text(value) for value in columns])
    panel.set_ylabel(settings[0])
    panel.set_xlabel(settings[1])


def _draw_curves(panels: Any, points: Sequence[PointResult], colors: list[Any], bits: bool) -> None:
    """Every run over steps and over the time of its steps: training thin, validation with dots."""
    scale = []
    for number, (point, color) in enumerate(zip(points, colors, strict=True)):
        label = point_text(point.settings) if number < _MOST_LABELS else None
        for outcome in point.outcomes:
            run = outcome.summary
            if run is None:
                continue
            val = run.bits_curve if bits else run.val_curve
            train = [] if bits else list(run.train_curve.loss)
            if outcome.state == "finished":
                scale.append((train, list(val.loss)))
            positions, means = smoothed(train)
            for panel, name, unit in zip(
                panels, ("tokens", "seconds"), (run.batch_tokens, 1), strict=True
            ):
                xs = getattr(run.train_curve, name)
                thin = {"color": color, "linewidth": 1, "alpha": _PALE}
                panel.plot([xs[at] / unit for at in positions], means, **thin)
                at = [x / unit for x in getattr(val, name)]
                panel.plot(at, val.loss, color=color, marker="o", markersize=3, label=label)
            label = None
    if scale:
        panels[0].set_ylim(*scale_of_end(scale))
        panels[1].set_ylim(*scale_of_end(scale))
    for panel, what in zip(panels, ("steps", "seconds of training steps"), strict=True):
        panel.set_xlabel(what)
        panel.set_ylabel("bits per byte" if bits else "loss (nats per token): training thin")
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7, loc="upper right")
