"""What became of the runs of a sweep, from made-up folders, and which values are best."""

import shutil

import pytest

from tests.made_runs import made_run
from tests.train.experiments.sweeps.made_sweeps import (
    SEEDS,
    diverge,
    made_sweep,
    planned,
    set_state,
)
from train.experiments.sweeps.outcomes import largest_stable, outcome_of, point_results, rank
from train.experiments.sweeps.sweep_report import ended_line, format_points, sweep_verdict

CLEAR = {0.001: 3.0, 0.01: 2.5, 0.1: 2.8}
NOISE = {1: 0.02, 2: -0.01, 3: 0.03}  # of a seed, in all runs with it


def clear(value, seed):
    return CLEAR[value] + NOISE[seed] + 0.001 * seed * value


def alike(value, seed):
    return 3.0 + (0.001 if value == 0.01 else 0.0) * (-1) ** seed + NOISE[seed]


def results(runs):
    return point_results([outcome_of(run) for run in runs])


@pytest.fixture
def runs(tmp_path):
    return made_sweep(tmp_path, clear)


def test_the_best_has_the_smallest_mean_and_is_told_apart_by_pairs_of_seeds(runs):
    points = results(runs)
    assert [point.settings["optimizer.lr"] for point in points] == [0.001, 0.01, 0.1]
    ranking = rank(points)
    assert [point.settings["optimizer.lr"] for point in ranking.points] == [0.01, 0.1, 0.001]
    assert [d.told_apart for d in ranking.differences] == [True, True]
    assert ranking.differences[0].interval.confidence == pytest.approx(0.975)  # of two comparisons
    said = sweep_verdict(points, in_bits=False, range_of=None)
    assert said[0].startswith("best: optimizer.lr=0.01, final validation loss (nats per token) 2.6")
    assert said[0].endswith("(standard deviation over 3 seeds)")
    assert said[1].startswith("told apart from the second, optimizer.lr=0.1, which is 0.30")
    assert said[1].endswith("(95 % interval of 3 pairs of seeds, over all 2 comparisons)")


def test_what_is_within_the_noise_is_not_told_apart_and_named(tmp_path):
    said = sweep_verdict(results(made_sweep(tmp_path, alike)), in_bits=False, range_of=None)
    assert said[1].startswith("not told apart from the second, ")
    assert said[2].startswith("nor from: optimizer.lr=")


def test_a_best_value_at_the_end_of_those_tried_is_said_to_be_there(tmp_path):
    runs = made_sweep(tmp_path, lambda value, seed: 3.0 - value)
    said = sweep_verdict(results(runs), in_bits=False, range_of=None)
    assert said[-1] == "optimizer.lr=0.1 is the largest tried: the best may be beyond"


def test_one_seed_gives_a_best_and_says_that_noise_is_not_known(runs):
    said = sweep_verdict(results([run for run in runs if run.seed == 1]), False, None)
    assert said[0].endswith("(one seed)")
    assert "one seed does not show whether that is noise: --seeds 3 does" in said[1]


@pytest.mark.parametrize("state", ["finished", "preempted", "failed"])
def test_a_run_that_diverged_is_known_by_its_losses_whatever_its_status(runs, state):
    diverge(runs[2])
    set_state(runs[2], state)
    outcome = outcome_of(runs[2])
    assert (outcome.state, outcome.diverged_at) == ("diverged", 29)
    assert ended_line(outcome, 3, 9).startswith("3 of 9  optimizer.lr=0.1,seed=1  diverged at st")


def test_a_combination_with_a_run_that_diverged_is_left_out_and_shown(runs):
    diverge(runs[1])
    points = results(runs)
    assert rank(points).points[0].settings == {"optimizer.lr": 0.1}
    assert sweep_verdict(points, False, None)[-1].endswith("have finished: 1 of 3")
    row = format_points(points, 100).splitlines()[3]
    assert row.startswith("0.01")
    assert "2 of 3" in row
    assert row.endswith("1 diverged at step 29")


def test_a_range_test_names_the_largest_value_below_the_first_that_diverged(runs):
    first = [run for run in runs if run.seed == 1]
    assert largest_stable(results(first), "optimizer.lr") == {"optimizer.lr": 0.1}
    diverge(first[1])
    points = results(first)
    assert largest_stable(points, "optimizer.lr") == {"optimizer.lr": 0.001}
    said = sweep_verdict(points, False, "optimizer.lr")
    assert said[0] == "largest optimizer.lr below the first that diverged: 0.001"


def test_where_no_combination_has_finished_there_is_no_best(tmp_path):
    runs = [planned(tmp_path, 0.1, seed) for seed in SEEDS]
    points = results(runs)
    assert sweep_verdict(points, False, None) == [
        "no best: no combination has finished with all its seeds"
    ]
    assert "3 waiting" in format_points(points, 100)


def test_the_state_of_a_run_follows_from_its_folder(runs):
    assert outcome_of(runs[0]).state == "finished"
    set_state(runs[0], "failed", "out of memory")
    assert (outcome_of(runs[0]).state, outcome_of(runs[0]).reason) == ("failed", "out of memory")
    set_state(runs[0], "running")  # by its status; but no process has the lock
    assert outcome_of(runs[0]).state == "interrupted"
    (runs[0].path / "config.json").write_text("{")
    assert outcome_of(runs[0]).state == "failed"
    shutil.rmtree(runs[0].path)
    assert (outcome_of(runs[0]).state, outcome_of(runs[0]).reason) == (
        "failed",
        "finished at step 40",  # the last line of its log
    )
    runs[0].log.unlink()
    assert outcome_of(runs[0]).state == "waiting"


def test_losses_of_different_validation_tokens_are_compared_as_bits_per_byte(tmp_path):
    runs = [planned(tmp_path, value, 1, "context_length") for value in (16, 32)]
    for run, tokens in zip(runs, (64, 32), strict=True):
        made_run(run.path, settings={"eval.val_tokens": tokens})
    outcomes = [outcome_of(run) for run in runs]
    points = point_results(outcomes)
    assert points[0].losses[1] == pytest.approx((3.0 + 4 / 41) / 4)


def test_results_on_different_data_are_said_to_be_of_different_text(tmp_path):
    runs = [planned(tmp_path, value, 1, "data") for value in ("a:0.5 b:0.5", "a:0.9 b:0.1")]
    for run in runs:
        made_run(run.path, data_fingerprint=run.name)
    said = sweep_verdict(results(runs), True, None)
    assert any("different data: the figures compare only if" in line for line in said)
