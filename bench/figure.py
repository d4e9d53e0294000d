"""A plot of a benchmark: one or more panels in one file, drawn without a screen."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOTS_PER_INCH = 120


@contextmanager
def figure(file: Path, size: tuple[float, float], panels: int = 1) -> Iterator[list[Axes]]:
    """The panels, one above the other; with the end of the block they are finished and saved."""
    drawn = Figure(figsize=size, layout="tight")
    axes = list(drawn.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    yield axes
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    drawn.savefig(file, dpi=DOTS_PER_INCH)
