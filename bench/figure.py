"""A plot of a benchmark with one or more panels, drawn into a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_DOTS_PER_INCH = 120


@contextmanager
def figure(
    file: Path, size: tuple[float, float], panels: int = 1, columns: int = 1
) -> Iterator[list[Axes]]:
    """The panels, one above the other. The file is written at the end of the `with` block.

    With several columns there are `panels` rows of them, and each panel has its own axes.
    """
    # Unlike matplotlib.pyplot, Figure needs no screen and keeps no global state.
    drawn = Figure(figsize=size, layout="tight")
    axes = list(drawn.subplots(panels, columns, sharex=columns == 1, squeeze=False).flat)
    yield axes
    for panel in axes:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    drawn.savefig(file, dpi=_DOTS_PER_INCH)
