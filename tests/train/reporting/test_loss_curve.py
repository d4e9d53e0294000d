"""The loss curve: drawn for any number of steps, with gaps, both losses and steps."""

import math
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from train.guards.band.area import BandArea
from train.reporting.loss_curve import draw_loss_curve


def lines(steps, gap=(), every=10):
    """Metric lines of a run whose loss falls; it is not finite in the steps of `gap`."""
    found = []
    for step in range(steps + 1):
        loss = 2 + 6 * math.exp(-step / 10)
        line: dict[str, Any] = {"step": step, "tokens": 64 * min(step + 1, steps)}
        if step < steps:
            line["train/loss"] = None if step in gap else loss
        if step % every == 0 or step == steps:
            line |= {"val/loss": loss + 0.5, "val/bits_per_byte": loss / 2}
        found.append(line)
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = Figure.savefig

    def savefig(self, *words, **more):
        figures.append(self)
        save(self, *words, **more)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


@pytest.mark.parametrize(
    "found",
    [[], lines(1), lines(3, gap=range(3)), [{"step": 0, "val/loss": 8.0}], [{"step": 0}]],
)
def test_a_curve_of_few_points_is_drawn(tmp_path, found):
    draw_loss_curve(found, 5.0, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 600)


def test_a_long_curve_shows_its_end_its_gaps_and_its_last_numbers(tmp_path, drawn):
    path = tmp_path / "a_run_at_$5" / "loss.png"
    path.parent.mkdir()
    draw_loss_curve(lines(300, gap=range(100, 120)), 5.0, path, "adamw at rate 0.001")
    axes, top = drawn[0].axes
    low, high = axes.get_ylim()
    assert low < 2 < 2.5 < high < 8
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[:2] == [
        "training, 2.000 (mean of the last 20 steps)",
        "validation, 2.500 (1.000 bits per byte)",
    ]
    smoothed = [line for line in axes.get_lines() if line.get_alpha() is None]
    assert [min(x.get_xdata()) for x in smoothed[:2]] == [0, 120 * 64]
    assert axes.get_title().endswith("at_\\$5\nadamw at rate 0.001")
    steps = [int(label.get_text()) for label in top.get_xticklabels()]
    assert steps[0] == 0
    assert list(top.get_xticks()) == [64 * step for step in steps]


def test_the_band_is_behind_the_curves(tmp_path, drawn):
    areas = [
        BandArea([(0, 7.0, 9.0), (640, 2.0, 2.5)], "training of 95% of sound runs (20 seeds)"),
        BandArea([(0, 8.0, 9.0), (640, 2.4, 2.9)], "validation of 95% of sound runs (20 seeds)"),
    ]
    draw_loss_curve(lines(10), 5.0, tmp_path / "loss.png", areas=areas)
    axes = drawn[0].axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [text for text in texts if "sound runs" in text] == [area.label for area in areas]
    assert len(axes.collections) == 2
