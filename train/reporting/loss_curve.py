"""The loss curve of a run as a picture."""

from pathlib import Path
from typing import Any

from storage.atomic import new_file
from storage.json_lines import column


def draw_loss_curve(lines: list[dict[str, Any]], entropy: float, path: Path) -> None:
    """Draw training and validation loss (nats) over steps; the line is the unigram entropy."""
    # Costs 0.4 seconds, which every rank would spend at every start.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*column(lines, "train/loss"), linewidth=0.8, alpha=0.7, label="training")
    axes.plot(*column(lines, "val/loss"), marker="o", markersize=4, label="validation")
    axes.axhline(entropy, linestyle="--", color="gray", label="unigram entropy of the data")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
