"""Marked steps: dense at first, with every tenth, and what is measured there."""

import math

from tests.made_bands import made_lines
from train.guards.band.marks import digest_at, figures_at, marked_steps, window_of


def test_the_marks_are_dense_at_first_and_at_every_tenth():
    tenths = tuple(range(90, 901, 90))
    assert marked_steps(900) == (0, 1, 2, 4, 8, 16, 32, 64, *tenths)
    assert marked_steps(8) == (0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert marked_steps(1) == (0, 1)


def test_a_window_is_at_most_half_of_the_steps_and_at_most_fifty():
    assert [len(window_of(mark)) for mark in (0, 1, 2, 8, 90, 900)] == [0, 1, 1, 4, 45, 50]
    assert window_of(8) == range(4, 8)


def test_the_figures_are_means_of_the_window_and_the_validation_of_the_step():
    lines = {
        0: {"train/loss": 9.0, "train/grad_norm": 1.0},
        1: {"train/loss": 8.0, "train/grad_norm": 2.0},
        2: {"train/loss": 6.0, "train/grad_norm": 8.0, "data/digest": "ab"},
        3: {"train/loss": 4.0, "train/grad_norm": 2.0, "data/digest": "cd"},
        4: {"val/loss": 5.5},
    }
    found = figures_at(4, lines)
    assert found == {"train/loss": 5.0, "train/grad_norm": math.log(4), "val/loss": 5.5}
    assert digest_at(4, lines) == "cd"


def test_a_figure_that_lacks_a_value_is_left_out():
    lines = {line["step"]: line for line in made_lines(1)}
    lines[37] = {**lines[37], "train/loss": None}
    assert set(figures_at(40, lines)) == {"train/grad_norm", "val/loss"}
    del lines[37]
    assert set(figures_at(40, lines)) == {"val/loss"}
