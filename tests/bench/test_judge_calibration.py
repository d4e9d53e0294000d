"""Judgements on recorded runs, counted."""

import numpy as np
import pytest

from bench.judge_calibration import main
from storage.atomic import read_json
from tests.damage import call
from tests.made_runs import made_run


@pytest.fixture
def runs(tmp_path):
    """Ten seeds of one setting; the same with 1 % more steps and 0.004 nats less; and rounding."""
    noise = np.random.default_rng(3).normal(0, 1, (3, 10))
    for n in range(10):
        seed, floor = {"seed": n}, 3 + 0.01 * noise[0, n]
        made_run(tmp_path / f"a_{n}", 100, floor, settings=seed)
        gain = floor - 0.004 + 0.001 * noise[1, n]
        made_run(tmp_path / f"b_{n}", 101, gain, settings=seed)
        rounding = floor + 0.0001 * noise[2, n]
        made_run(tmp_path / f"c_{n}", 100, rounding, settings=seed | {"micro_batch": 4})
    return tmp_path


def test_a_gain_is_found_and_seeds_and_rounding_are_no_difference(runs, monkeypatch):
    monkeypatch.setattr("bench.judge_calibration._SIMULATED", 2000)
    a, b, c = ([f"{side}_{n}" for n in range(10)] for side in "abc")
    words = ["--seeds-of", *a, "--gain", *a, *b, "--rounding", *a, *c, "--judgements", "10"]
    done = call(main, [*words, "--results", "found.json"], runs)
    assert (done.code, done.err) == (0, "")
    found = read_json(runs / "found.json")
    tallies = {row["kind"]: row for row in found["judgements"]}
    assert tallies["two seeds of one setting"]["not told apart"] >= 9
    assert tallies["rounding: micro_batch 2 and 4, resampled"]["not told apart"] >= 9
    assert tallies["gain: steps 100 and 101, resampled"]["better"] == 10
    assert tallies["gain: steps 100 and 101, normal"]["better"] == 10
    last = next(row for row in found["measures"] if row["kind"].startswith("gain"))
    assert last["mean"] == pytest.approx(-0.004, abs=0.001)
    shares = {row["form"]: row["told_apart"] for row in found["simulated"]}
    assert shares["normal"] <= 0.05
    assert (runs / "found.md").read_text() == done.out


def test_too_few_runs_are_refused(runs):
    done = call(main, ["--seeds-of", "a_1", "a_2", "--results", "found.json"], runs)
    assert (done.code, (runs / "found.json").exists()) == (2, False)
    assert "2 finished runs in --seeds-of; give 6 or more" in done.err
