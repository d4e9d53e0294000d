"""Sources and weights as a user writes them."""

from fractions import Fraction
from pathlib import Path

import pytest

from data_prep.order.weights import (
    WeightStart,
    check_one_mixture,
    folders_and_weights,
    weight_changes,
)


def named(*places):
    return [(p.folder, p.weight) for p in folders_and_weights([Path(place) for place in places])]


def test_a_single_folder_needs_no_weight_and_several_have_one_each():
    assert named("data/x") == [(Path("data/x"), 1)]
    assert named("data/x:3") == [(Path("data/x"), 3)]
    assert named("a:0.7", "b:.2", "c:1/10") == [
        (Path("a"), Fraction(7, 10)),
        (Path("b"), Fraction(1, 5)),
        (Path("c"), Fraction(1, 10)),
    ]


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    (tmp_path / "set:2").mkdir()
    assert named(tmp_path / "set:2") == [(tmp_path / "set:2", 1)]
    assert named("v:latest") == [(Path("v:latest"), 1)]
    assert named(f"{tmp_path}/set:2:0.5", "b:0.5")[0] == (tmp_path / "set:2", Fraction(1, 2))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([], "data names no folder; give --data FOLDER"),
        (["a", "b:1"], "a has no weight; with several sources give each as FOLDER:WEIGHT"),
        (["a:-0.5", "b:1"], "data a:-0.5: -0.5 is no weight; give a number that is 0 or more"),
        (["a", "b"], "a, b have no weight"),
        (["a:nan", "b:1"], "nan is no weight"),
        (["a:50%", "b:50%"], "50% is no weight"),
        (["a:0,5", "b:0,5"], "0,5 is no weight"),
        (["a:inf", "b:1"], "inf is no weight"),
        (["a:1e999999999", "b:1"], "1e999999999 is no weight"),
        (["a:1/0", "b:1"], "1/0 is no weight"),
        (["a:0.12345678901234567", "b:1"], "of at most 16 characters"),
        (["a:0", "b:0"], "weights 0 0: one of them must be more than 0"),
        (["a:1", "./a:2"], "data names a twice; give it once"),
    ],
)
def test_what_names_no_mixture_is_refused(places, message):
    with pytest.raises(ValueError, match=message):
        named(*places)


def test_changes_are_steps_with_as_many_weights_as_sources():
    one, two = weight_changes(["100", "0.5", "0.5", "200", "1", "0"], 2)
    assert (one.step, one.weights) == (100, (Fraction(1, 2), Fraction(1, 2)))
    assert (two.step, two.weights) == (200, (1, 0))
    assert weight_changes([], 1) == ()


@pytest.mark.parametrize(
    ("words", "sources", "message"),
    [
        (["100", "0.5"], 2, "after each step there must be 2 weights.*makes 3 numbers"),
        (["100", "1"], 1, "names a single source"),
        (["0", "1", "1"], 2, "0 is no step for a change; give steps from 1 on"),
        (["5", "1", "1", "5", "1", "2"], 2, "5 is no step.*each later than the one before"),
        (["x", "1", "1"], 2, "x is no step"),
        (["5", "0", "0"], 2, "one of them must be more than 0"),
        (["5", "-1", "2"], 2, "-1 is no weight"),
    ],
)
def test_what_describes_no_change_is_refused(words, sources, message):
    with pytest.raises(ValueError, match=message):
        weight_changes(words, sources)


def test_the_beginning_of_a_change_is_recorded_and_read_again():
    start = WeightStart(5, 40, (Fraction(1, 3), Fraction(2, 3)))
    assert WeightStart.from_json(start.as_json()) == start
    for damaged in ({}, [], {"step": 1, "first_window": 2, "weights": ["x"]}, None):
        with pytest.raises(ValueError, match="is no change of weights"):
            WeightStart.from_json(damaged)


def test_a_mixture_after_several_flags_is_refused_and_one_after_one_is_not():
    for words in (
        ["--data", "a:1", "--data=b:0.5"],
        ["--data=a:1", "--x", "--data", "b:0.5", "c:1"],
    ):
        with pytest.raises(ValueError, match="2 times; give the sources of a mixture after one"):
            check_one_mixture(words)
    check_one_mixture(["--data", "a:1", "b:0.5", "--out", "x"])
    check_one_mixture(["--data", "a", "--data", "b:0.5"])
    check_one_mixture([])
