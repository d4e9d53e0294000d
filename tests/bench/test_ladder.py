"""A loss that is foretold from smaller networks, on losses whose line is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.ladder_fit import Point, Scatter, fit_line, irreducible_loss, scatter_of
from bench.ladder_plan import Recipe, multiplied_parameters, plan_rungs
from bench.ladder_report import check_sentence, draw, markdown, summary
from bench.ladder_results import check_found, foretold, line_of_runs, losses_of
from data_prep.dataset.shards import open_data_set
from model.estimates.flops import training_flops_per_token
from storage.atomic import write_json
from tests.launching import python
from tests.made_runs import made_run
from tests.runs import GOLDEN

FLOOR, COEFFICIENT, EXPONENT = 1.2, 60.0, 0.11
COMPUTE = (7e10, 1.6e11, 5.4e11, 1.3e12)
FIFTH = 5.6e12
NOISE = 0.01


def true_loss(flops):
    return FLOOR + COEFFICIENT * flops**-EXPONENT


def test_a_line_without_noise_is_found_and_foretells_the_fifth_size():
    points = [Point(c, true_loss(c)) for c in COMPUTE]
    line = fit_line(points, (FLOOR, 0.1), Scatter(1e-4, 0.0, 16))
    assert line.exponent == pytest.approx(EXPONENT, abs=1e-3)
    assert line.loss_at(FIFTH) == pytest.approx(true_loss(FIFTH), abs=1e-3)


def test_of_1000_noisy_ladders_the_interval_has_95_percent():
    draws = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        # The truth of each ladder is drawn too: E is known as well as its deviation says.
        floor = draws.normal(FLOOR, 0.15)
        losses = floor + COEFFICIENT * np.array([*COMPUTE, FIFTH]) ** -EXPONENT
        losses += draws.normal(0, NOISE, 5)
        points = [Point(c, loss) for c, loss in zip(COMPUTE, losses, strict=False)]
        line = fit_line(points, (FLOOR, 0.15), Scatter(NOISE, 0.0, 10**6))
        hits += abs(line.loss_at(FIFTH) - losses[-1]) <= line.half_width(FIFTH, 1)
    assert 930 <= hits <= 970


def test_little_noise_of_few_seeds_and_more_runs_decide_the_width():
    points = [Point(c, true_loss(c)) for c in COMPUTE]
    wide, narrow = (
        fit_line(points, (FLOOR, 0.1), Scatter(noise, 0.0, 16)) for noise in (0.02, 0.01)
    )
    assert wide.half_width(FIFTH, 1) > 1.5 * narrow.half_width(FIFTH, 1)
    assert narrow.half_width(FIFTH, 1) > narrow.half_width(FIFTH, 5)
    few = fit_line(points, (FLOOR, 0.1), Scatter(0.01, 0.0, 1))
    assert few.half_width(FIFTH, 1) > 5 * narrow.half_width(FIFTH, 1)


def test_a_bend_that_the_small_sizes_do_not_show_widens_a_far_forecast_the_most():
    points = [Point(c, true_loss(c)) for c in COMPUTE]
    straight, bent = (
        fit_line(points, (FLOOR, 0.1), Scatter(0.01, 0.0, 10**6, bend)) for bend in (0.0, 0.02)
    )
    added = [
        (bent.half_width(c, 1) ** 2 - straight.half_width(c, 1) ** 2) ** 0.5 / 1.96
        for c in (2 * COMPUTE[-1], 4 * COMPUTE[-1])
    ]
    # Losses E + 0.02 ln(C)^2 / 2 against the straight line through them, with numpy alone.
    logs = np.log([*COMPUTE, 2 * COMPUTE[-1], 4 * COMPUTE[-1]])
    losses = 0.02 * logs**2 / 2
    line = np.polyval(np.polyfit(logs[:4], losses[:4], 1), logs[4:])
    assert added == pytest.approx(losses[4:] - line, rel=1e-3)
    assert bent.loss_at(FIFTH) == straight.loss_at(FIFTH)


def losses_around(shift):
    """Losses of two seeds of each compute, whose means are off the line by +-`shift`."""
    means = (true_loss(c) + shift * (-1) ** n for n, c in enumerate(COMPUTE))
    return {c: [mean + NOISE, mean - NOISE] for c, mean in zip(COMPUTE, means, strict=True)}


def test_the_noise_is_that_of_seeds_and_the_misfit_what_it_does_not_explain():
    exact = scatter_of(losses_around(0.0), (FLOOR, 0.01))
    assert (exact.noise, exact.count) == (pytest.approx(NOISE * 2**0.5), 4)
    assert exact.misfit == 0
    bent = scatter_of(losses_around(0.05), (FLOOR, 0.01))
    assert bent.noise == pytest.approx(exact.noise)
    assert 0.04 < bent.misfit < 0.08
    assert bent.of_mean(10**6) == pytest.approx(bent.misfit)


def test_the_noise_of_one_seed_is_unknown():
    with pytest.raises(ValueError, match="the noise of seeds is not known; give two seeds"):
        scatter_of({1e10: [5.0], 1e11: [4.0], 1e12: [3.5]}, (FLOOR, 0.1))


def test_two_sizes_are_refused():
    points = [Point(1e10, 5.0), Point(1e11, 4.0), Point(1e11, 4.1)]
    with pytest.raises(ValueError, match="a line needs 3 sizes or more; these runs have 2"):
        fit_line(points, irreducible_loss(3.0), Scatter(0.01, 0.0, 4))


@pytest.fixture
def data(tmp_path):
    shutil.copytree(GOLDEN / "data_set", tmp_path / "data")
    return open_data_set(tmp_path / "data")


def recipe(data, ratio=0.5, power=0.0):
    return Recipe(data.folder, 128, power, ratio, 8, 128)


def test_tokens_grow_with_parameters_and_flops_are_those_of_the_model(data, tmp_path):
    small, large = plan_rungs(("1x8", "2x8"), recipe(data), (1, 2), data, tmp_path / "out")
    network = large.trials[0].config.network_for(data.tokenizer().n_vocab)
    assert large.parameters - small.parameters == 12 * 8 * 8
    assert large.parameters == multiplied_parameters(network)
    assert large.tokens == large.steps * 128 == pytest.approx(large.parameters / 2, abs=64)
    assert large.flops == large.tokens * training_flops_per_token(network)
    assert [trial.config.seed for trial in large.trials] == [1, 2]
    assert {trial.config.steps for trial in large.trials} == {large.steps}


def test_the_batch_grows_with_the_power_of_the_parameters_and_steps_with_the_rest(data, tmp_path):
    names = ("2x24", "1x8")
    large, small = plan_rungs(names, recipe(data, 0.1, 2 / 3), (1,), data, tmp_path / "out")
    assert small.batch_tokens == 128
    growth = large.parameters / small.parameters
    assert large.batch_tokens % 128 == 0
    assert large.batch_tokens == pytest.approx(128 * growth ** (2 / 3), abs=64)
    assert large.trials[0].config.batch_tokens == large.batch_tokens
    assert large.tokens == large.steps * large.batch_tokens
    assert large.tokens == pytest.approx(large.parameters / 10, abs=large.batch_tokens / 2)


def test_a_text_that_would_be_read_twice_is_refused_with_the_most_that_is_new(data, tmp_path):
    with pytest.raises(ValueError, match=r"read again teaches less; .* --tokens-per-parameter 1\."):
        plan_rungs(("1x8",), recipe(data, 2.0), (1,), data, tmp_path / "out")


def ladder_of_made_runs(data, folder: Path, bend=0.0):
    """Three sizes and a fourth, with losses on the line but for their seed, and a bend."""
    rungs = plan_rungs(("1x8", "2x8", "3x8", "6x8"), recipe(data), (1, 2), data, folder)
    for rung in rungs:
        for number, trial in enumerate(rung.trials):
            loss = true_loss(rung.flops) + NOISE * (-1) ** number - bend * (rung is rungs[-1])
            made_run(trial.config.out, steps=rung.steps, floor=loss - 4 / (rung.steps + 1))
    return rungs


def test_each_seed_foretells_and_all_together_more_narrowly(data, tmp_path):
    *small, last = ladder_of_made_runs(data, tmp_path / "out")
    found = foretold(small, last.flops)
    assert [f.seed for f in found.forecasts] == [1, 2, None]
    for forecast in found.forecasts:
        assert abs(forecast.loss - true_loss(last.flops)) < forecast.half_width
    assert found.forecasts[-1].half_width < found.forecasts[0].half_width
    result = summary([*small, last], found, losses_of(last))
    assert result["draws"][0]["error"] == pytest.approx(
        found.forecasts[0].loss - losses_of(last)[0]
    )
    assert "of 2 draws within 0.03 nats." in markdown(result)
    draw([*small, last], found, losses_of(last), tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("bend", [0.0, 0.1])
def test_a_bend_among_the_small_sizes_is_told_with_the_forecast(data, tmp_path, bend):
    small = ladder_of_made_runs(data, tmp_path / "out", bend)
    check = foretold(small, 2 * small[-1].flops).check
    assert check is not None
    assert check.error == pytest.approx(bend, abs=0.02)
    said = check_sentence("6x8", check)
    assert said.startswith("6x8 foretold from the smaller sizes: ")
    assert ("the losses bend" in said) is bool(bend)


def test_runs_of_another_ladder_are_not_taken(data, tmp_path):
    (rung, *_) = ladder_of_made_runs(data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"1x8_s1 holds a run with other settings \(.*; give anot"):
        check_found(rung, data.fingerprint)


def test_finished_runs_foretell_a_loss_and_nothing_is_trained(tmp_path):
    runs = [
        made_run(tmp_path / f"r{layers}{seed}", floor=5 - 0.3 * layers + 0.01 * seed,
                 settings={"model.n_layer": layers, "seed": seed})
        for layers in (1, 2, 4, 8) for seed in (1, 2)
    ]  # fmt: skip
    line, points, check = line_of_runs(runs)
    assert len({point.flops for point in points}) == 4
    assert check is not None
    assert check.measured == pytest.approx(points[-1].loss, abs=0.01)
    assert line_of_runs(runs[:-2])[2] is None
    assert line.loss_at(1e12) < min(point.loss for point in points)
    status = json.loads((runs[0] / "status.json").read_text())
    write_json(runs[0] / "status.json", status | {"state": "preempted"})
    with pytest.raises(ValueError, match="r11 is preempted; give finished runs"):
        line_of_runs(runs)
    with pytest.raises(ValueError, match="the noise of seeds is not known; give two seeds"):
        line_of_runs([run for run in runs if run.name.endswith("2")])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--sizes 3x20 3x32 3x48", "sizes=3x20 has a width that is no multiple of head_width=8"),
        ("--sizes 3x24 3 3x48", "sizes=3 is no size; write layers and width, such as 2x48"),
        ("--sizes 3x24 3x32", "sizes are 2; give 3 or more"),
        ("--seeds 1", "seeds=1 is out of range; use 2 or more"),
        ("--runs runs/a", "--runs and --flops belong together"),
        ("--batch-power 2", "batch_power=2.0 is out of range; use 0 to 1"),
        ("--results x.md", "does not end with .json, and .md and .png are written beside it; give"),
        ("--results setup.cfg/x.json", "is below"),
        ("--batch-tokens 100", "batch_tokens=100 is no multiple of 128"),
    ],
)
def test_a_wrong_ladder_is_refused(words, error):
    done = python("bench/ladder.py", *words.split(), "--data", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr


@pytest.mark.long
def test_a_ladder_is_trained_and_the_forecast_is_there_before_the_last_size(data, tmp_path):
    words = "--sizes 1x8 1x16 2x16 --predict 2x24 --tokens-per-parameter 0.2 --batch-tokens 128"
    words += " --val-tokens 128 --seeds 2 --data data --out out --results result.json"
    words += " --checkpoints 3"
    only = python("bench/ladder.py", *words.split(), "--forecast-only", folder=tmp_path)
    assert only.returncode == 0, only.stderr
    before = (tmp_path / "out" / "forecast.json").read_text()
    assert not list((tmp_path / "out").glob("2x24*"))
    done = python("bench/ladder.py", *words.split(), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 6 runs: 1x8_s1 (was there)" in done.stdout
    assert len(list((tmp_path / "out" / "2x24_s1" / "checkpoints").glob("step_*"))) >= 3
    found = json.loads((tmp_path / "result.json").read_text())
    told = [one["loss"] for one in json.loads(before)["forecasts"]]
    assert [one["foretold"] for one in found["draws"]] == told
