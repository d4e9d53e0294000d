"""Tests of bench/peers.py: which lines are steps, and the rates from the times between them."""

import sys

import pytest

from bench.peers import Arguments, Side, rates, step_seconds, turn

STEPS = {
    "ours": "     3/40   10.9411  6.00e-04    2.100     123    480k   0:01:00",
    "ours before": "step  3/40 | loss 10.9411 | lr 6.000e-04 | norm 2.1 | 480000 tokens/s",
    "build-nanogpt": "step     3 | loss: 9.51 | lr 1e-05 | norm: 4.7 | dt: 93.12ms | tok/sec: 1.8",
    "llm.c in Python": "step    3/40 | train loss 10.9 | norm 2.1 | lr 1e-05 | (123 ms | 42 tok/s)",
    "llm.c in CUDA": "step    3/40 | loss 11.0 (+0.1z)| norm 15.3 (+0.2z)| lr 1e-06 | 300.1 ms",
    "nanoGPT": "iter 3: loss 10.9, time 135.12ms, mfu 30.00%",
    "modded-nanogpt": "step:3/3375 train_time:3.219s step_avg:1073.00ms",
}
OTHERS = (
    "step 250/300 | val/loss 5.3 | val/bits_per_byte 1.6",
    "validation loss: 10.9512",
    "step 0: train loss 10.9, val loss 10.9",
    "step:0/3375 val_loss:10.82580 train_time:0.000s step_avg:nanms",
    "val loss 10.95",
)
ENDLESS = """
import itertools, time
for step in itertools.count():
    print(f"iter {step}: loss 1.0, time 1ms", flush=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("name", STEPS)
def test_the_line_of_a_step_of_every_trainer_is_recognised(name):
    assert step_seconds([(1.0, STEPS[name]), (1.5, STEPS[name])], skip=0) == [0.5]


def test_lines_of_validation_are_not_steps():
    assert step_seconds([(float(at), line) for at, line in enumerate(OTHERS)], skip=0) == []


def test_the_first_steps_are_not_timed():
    arrivals = [(at, STEPS["nanoGPT"]) for at in (0.0, 90.0, 91.0, 92.0)]
    assert step_seconds(arrivals, skip=1) == [1.0, 1.0]


def test_rates_are_medians_and_the_first_is_compared_with_the_others():
    found = rates({"ours": [[1.0, 1.0, 9.0], [1.0]], "peer": [[2.0], []], "broken": [[]]}, 1000)
    assert found["ours"]["tokens_per_second"] == 1000
    assert (found["peer"]["by_turn"], found["peer"]["ratio"]) == ([500], 2.0)
    assert "broken" not in found


def test_a_turn_ends_a_trainer_that_would_run_forever(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    side = Side("endless", tmp_path, f"{sys.executable} endless.py")
    arguments = Arguments(side=(), seconds=0.1, skip=2, patience=30)
    steps, _ = turn(side, arguments)
    assert sum(steps) >= 0.1
    assert max(len(steps), 2) < 100


def test_a_turn_without_steps_returns_the_last_lines(tmp_path):
    steps, last = turn(Side("broken", tmp_path, "echo no CUDA; false"), Arguments(side=()))
    assert (steps, last) == ([], ["no CUDA\n"])


@pytest.mark.parametrize(("side", "message"), [("a; b", "is not"), ("a; nowhere; c", "no folder")])
def test_a_side_that_cannot_be_run_is_refused(side, message):
    with pytest.raises(ValueError, match=message):
        Arguments(side=(side,))
