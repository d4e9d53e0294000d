"""The grid of a sweep: values, seeds and the runs that follow."""

import pytest

from train.experiments.sweeps.grid import (
    Axis,
    plan_grid,
    point_text,
    range_axis,
    seeds_of,
    set_axis,
)


def planned(folder, *sets, words=("demo",), seeds=(1, 2)):
    return plan_grid(list(words), [set_axis(text) for text in sets], seeds, folder)


def test_all_combinations_of_values_get_every_seed_in_folders_that_name_them(tmp_path):
    points = planned(tmp_path, "optimizer.lr=1e-3,3e-3", "--batch-tokens=1024,2048")
    assert [point_text(point.settings) for point in points] == [
        "optimizer.lr=0.001, batch_tokens=1024",
        "optimizer.lr=0.001, batch_tokens=2048",
        "optimizer.lr=0.003, batch_tokens=1024",
        "optimizer.lr=0.003, batch_tokens=2048",
    ]
    trial = points[3].trials[1]
    assert trial.config.out == tmp_path / "optimizer.lr=0.003,batch_tokens=2048,seed=2"
    assert (trial.config.seed, trial.config.optimizer.lr) == (2, 0.003)
    assert trial.words[-4:] == ("--seed", "2", "--out", str(trial.config.out))


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("optimizer=adamw,sgd", "optimizer", ["adamw", "sgd"]),
        ("optimizer.name=muon,sgd", "optimizer", ["muon", "sgd"]),
        ("guard.box_weights=True,false", "guard.box_weights", [True, False]),
        ("stop_when_worse=None,3", "stop_when_worse", [None, 3]),
        ("micro-batch=auto,4", "micro_batch", ["auto", 4]),
        ("schedule.hold=0.3,10", "schedule.hold", [0.3, 10]),
        ("eval.tasks=pydoc_choice,pydoc_choice hellaswag", "eval.tasks",
         [("pydoc_choice",), ("pydoc_choice", "hellaswag")]),
    ],
)  # fmt: skip
def test_a_value_is_read_as_the_flag_of_its_setting_is(tmp_path, text, key, values):
    points = planned(tmp_path, text)
    assert [point.settings for point in points] == [{key: value} for value in values]


def test_a_setting_of_an_optimizer_that_the_runs_are_given_can_be_varied(tmp_path):
    words = ("demo", "--optimizer", "sgd")
    points = planned(tmp_path, "optimizer.momentum=0,0.9", words=words)
    assert [point.trials[0].config.optimizer.momentum for point in points] == [0.0, 0.9]


def test_long_values_make_a_short_name_and_every_name_is_a_file_s(tmp_path):
    points = planned(tmp_path, f"stage=a/b c,{'x' * 250}", seeds=(7,))
    names = [point.trials[0].name for point in points]
    assert names[0] == "stage=a_b_c,seed=7"
    assert len(names[1]) < 220


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lr"], "--set lr names no setting with values; write it as --set optimizer.lr=3e-4,1e-3"),
        (["optimizer.lr="], "names no setting with values"),
        (["optimizer.lr=1,,2"], "names no setting with values"),
        ([""], "--set '' names no setting"),
        (["optimizer.lr=1e-3,0.001"], "optimizer.lr=1e-3 and optimizer.lr=0.001 are the same; giv"),
        (["seed=1,2"], "--set seed is for the sweep to decide; give --seeds"),
        (["out=a,b"], "--set out is for the sweep to decide; give --out"),
        (["steps=5,6", "--steps=7"], "steps is varied twice; give all its values in one --set"),
        (["optimizer=adamw,lamb"], "optimizer=lamb is not known; .* one of adamw, muon, sgd"),
    ],
)
def test_what_is_no_grid_is_refused_with_the_setting_and_the_cure(tmp_path, sets, message):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, *sets)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.lr=0.1,x", "--optimizer.lr x is not a number; give one"),
        ("optimiser.lr=1", "there is no option --optimiser.lr=1; perhaps you meant --optimizer.lr"),
        ("optimizer.lr=0.1,-1", "optimizer.lr=-1.0 is not a learning rate"),
    ],
)
def test_what_the_parser_of_a_run_refuses_ends_with_its_sentence(tmp_path, text, said, capsys):
    with pytest.raises(SystemExit) as ended:
        planned(tmp_path, text)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_setting_that_all_runs_are_given_cannot_be_varied_too(tmp_path):
    with pytest.raises(ValueError, match="--optimizer.lr is given to all runs and varied too"):
        planned(tmp_path, "optimizer.lr=1", words=("demo", "--optimizer.lr=2"))


def test_a_range_has_values_that_are_each_the_same_times_the_one_before():
    axis = range_axis("optimizer.lr", 1e-5, 1.0, 6)
    assert axis == Axis("optimizer.lr", ("1e-05", "0.0001", "0.001", "0.01", "0.1", "1"))
    assert len(range_axis("optimizer.lr", 1e-4, 1.0, 12).values) == 12


@pytest.mark.parametrize(
    ("low", "high", "points", "message"),
    [
        (1.0, 0.1, 12, "1 0.1 is no range; give a positive number and then a larger one"),
        (0.0, 0.1, 12, "is no range"),
        (0.1, 1.0, 1, "points=1 is out of range; use 2 to"),
        (1.0, 1.01, 12, r"points=12 is too many .* use points=\d+ or fewer"),
    ],
)
def test_what_is_no_range_is_refused(low, high, points, message):
    with pytest.raises(ValueError, match=message):
        range_axis("optimizer.lr", low, high, points)


def test_seeds_are_counted_or_listed():
    assert seeds_of("3") == (1, 2, 3)
    assert seeds_of("4,8,15") == (4, 8, 15)
    assert seeds_of("1337,") == (1337,)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "1,-2", "1,1", "3.5", str(10**9)])
def test_what_names_no_seeds_is_refused(text):
    with pytest.raises(ValueError, match=r"^--seeds .*; give"):
        seeds_of(text)
