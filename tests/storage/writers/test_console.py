"""The console: rows of 80 characters by the clock, evaluations as a table, a bar."""

import logging
import math
import os
import pty
import re
import sys
import termios

import pytest

from storage.terminal.quantities import duration
from storage.writers.console import Console
from storage.writers.console_rows import Evaluations

STEP = {
    "tokens": 100,
    "train/loss": 2.5,
    "train/lr": 6e-4,
    "train/grad_norm": 1.25,
    "train/skipped": 0,
    "data/digest": "00ff",
    "speed/step_milliseconds": 100.0,
    "speed/tokens_per_second": 4321.0,
    "speed/seconds_left": 61.0,
}
LARGEST = STEP | {
    "train/loss": math.nan,
    "train/grad_norm": 12345.678,
    "train/skipped": 1,
    "speed/step_milliseconds": 987654.0,
    "speed/tokens_per_second": 123456789.0,
    "speed/mfu": 1.0,
}
EVALUATION = {
    "val/loss": 3.0,
    "val/bits_per_byte": 1.25,
    "a_task_with_a_very_long_name_of_its_own/acc_norm": 0.25,
    "a_task_with_a_very_long_name_of_its_own/acc_norm_stderr": 0.0125,
}


@pytest.fixture
def shown(caplog, monkeypatch):
    """The lines so far."""
    caplog.set_level(logging.INFO)
    lines = []
    monkeypatch.setattr(caplog.handler, "emit", lambda record: lines.append(record.getMessage()))
    return lines


class Clock:
    """A clock that each look moves on, by as long as the steps take."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.now = 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def test_a_step_and_an_evaluation_are_a_row_and_a_table(shown):
    console = Console(1000)
    console.write(0, STEP | {"val/loss": 3.0, "hellaswag/acc": 0.25, "hellaswag/acc_stderr": 0.01})
    console.write(7, STEP | {"val/loss": 2.75, "hellaswag/acc": 0.24})
    assert shown == [
        "     step      loss        lr     norm      ms   tok/s       ETA",
        "   0/1000    2.5000  6.00e-04    1.250     100   4.32k   0:01:40",
        "evaluation at step 0 of 1000",
        "  validation loss                       3.0000",
        "  hellaswag accuracy                    0.2500  ±0.0100",
        "     step      loss        lr     norm      ms   tok/s       ETA",
        "   7/1000    2.5000  6.00e-04    1.250     100   4.32k   0:01:39",
        "evaluation at step 7 of 1000",
        "  validation loss                       2.7500            -0.2500  best",
        "  hellaswag accuracy                    0.2400            -0.0100",
    ]


@pytest.mark.parametrize("line", [STEP, LARGEST, LARGEST | {"train/loss": math.inf}])
@pytest.mark.parametrize("steps", [1, 1000, 10_000_000])
def test_every_line_fits_80_columns(shown, line, steps):
    console = Console(steps)
    console.write(steps - 1, line | EVALUATION)
    console.write(steps - 1, LARGEST | EVALUATION)
    assert max(map(len, shown)) <= 80


def test_a_thousand_fast_steps_are_a_line_a_second(shown):
    console = Console(1000, now=Clock(0.125))
    for step in range(1000):
        console.write(step, STEP)
    rows = [int(m[1]) for m in (re.match(r" *(\d+)/1000", text) for text in shown) if m]
    assert rows[:6] == [0, 1, 2, 10, 18, 26]
    assert rows[-1] == 999
    assert len(rows) == 128
    assert len(shown) == 128 + 7


@pytest.mark.parametrize(("seconds", "count"), [(0, 50), (3600, 3)])
def test_the_setting_says_how_often_a_step_is_shown(shown, seconds, count):
    console = Console(1000, seconds, now=Clock(0.1))
    for step in range(50):
        console.write(step, STEP)
    assert sum("/1000" in text for text in shown) == count


@pytest.mark.parametrize(
    ("wrong", "why"), [({}, "a spike"), ({"train/loss": math.nan}, "loss or gradient not finite")]
)
def test_a_skipped_step_is_shown_whatever_the_clock_says(shown, wrong, why):
    console = Console(1000, 3600)
    for step in range(9):
        console.write(step, STEP)
    console.write(9, STEP | {"train/skipped": 1} | wrong)
    assert shown[-2].startswith("   9/1000")
    assert shown[-1] == f"step 9 was skipped: {why}"


def test_the_remaining_time_follows_the_last_steps_and_the_pauses(shown):
    clock = Clock(0.0)
    console = Console(1000, 0, now=clock)
    for step in range(201):
        evaluated = step % 100 == 0
        clock.now += (1.0 if step < 150 else 0.1) + 30 * (evaluated and step > 0)
        line = STEP | {"speed/step_milliseconds": 1000.0 if step < 150 else 100.0}
        console.write(step, line | ({"val/loss": 3.0} if evaluated else {}))
    row = next(text for text in shown if text.startswith(" 200/1000"))
    assert row.endswith(f" {duration(799 * 0.1 + 7 * 30)}")
    assert "  100 " in row
    assert " 4.32k " in row


def test_a_later_start_knows_the_remaining_time_from_its_first_evaluation_on(shown):
    clock = Clock(0.0)
    console = Console(1000, 0, now=clock)
    for step in range(95, 101):
        clock.now += 1.0 + 30 * (step == 100)
        evaluated = {"val/loss": 3.0} if step == 100 else {}
        console.write(step, STEP | {"speed/step_milliseconds": 1000.0} | evaluated)
    row = next(text for text in shown if text.startswith(" 100/1000"))
    assert row.endswith(f" {duration(899 + 8 * 30)}")


def test_a_later_start_compares_with_what_was_measured_before(shown):
    earlier = Evaluations()
    earlier.note({"val/loss": 2.0, "val/bits_per_byte": math.nan, "val/words": "text"})
    Console(9, earlier=earlier).write(3, {"val/loss": 2.5})
    assert shown[-1] == "  validation loss                       2.5000            +0.5000"
    assert earlier.best("val/loss") == 2.0


def test_of_many_sources_the_rows_are_left_out_and_counted():
    few = {f"val/{n}/{what}": 2.0 for n in range(8) for what in ("loss", "bits_per_byte")}
    assert len(list(Evaluations().rows({"val/loss": 2.0} | few))) == 17
    rows = list(Evaluations().rows({"val/loss": 2.0} | few | {"val/a/b/loss": 2.0}))
    assert rows[1:] == ["  17 more, of each source of the mixture, are in metrics.jsonl"]


def test_a_terminal_has_a_bar_below_whole_lines(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        handler = logging.StreamHandler(terminal)
        logging.getLogger().addHandler(handler)
        console = Console(4, now=Clock(0.1))
        for step in range(4):
            console.write(step, STEP)
        console.close()
        logging.getLogger().removeHandler(handler)
        terminal.flush()
        screen = ""
        while "3/4  loss" not in screen:
            screen += os.read(master, 100_000).decode()
    os.close(master)
    lines = [line.rsplit("\r", 1)[-1] for line in screen.split("\r\n")]
    assert lines[1] == "      0/4    2.5000  6.00e-04    1.250     100   4.32k   0:00:00"
    assert "3/4  loss 2.500  4.32k tok/s  0:00:00 left" in screen


def test_without_a_terminal_there_is_no_bar(capfd):
    console = Console(4)
    for step in range(4):
        console.write(step, STEP)
    console.close()
    assert "\r" not in "".join(capfd.readouterr())
