"""Tests of bench/hellaswag_speed.py: its methods agree, and it can continue after a round."""

import numpy as np
import pytest

from bench.hellaswag_agreement import agreement, scores_of
from bench.hellaswag_methods import COMPLETION, HARNESS, item_by_item_method, our_methods
from bench.hellaswag_rounds import Rounds
from bench.hellaswag_speed import results_of
from eval.scoring.multiple_choice import Item
from tests.eval_subjects import tiny_subject


def by_sum(*rows):
    return {"acc": np.array(rows)}


def test_another_choice_between_equal_scores_is_a_float_tie_and_one_between_unequal_is_not():
    ours = by_sum([5.0, 9.0, 7.0], [40.0, 40.0001, 50.0], [40.0, 41.0, 50.0])
    theirs = by_sum([5.0, 9.0, 7.0], [40.0001, 40.0, 50.0], [40.6, 40.5, 50.0])
    found = agreement(ours, theirs)
    assert found["acc"] == {"other_choices": [1, 2], "float_ties": [1]}
    assert found["largest_difference"] == pytest.approx(0.6)


def test_means_are_per_token_in_completion_style_and_per_character_in_harness_style():
    items = [Item("a", ("one two", "three"), 0), Item("a", ("one two", "three"), 0, harness=True)]
    scores = scores_of(items, np.array([[14.0, 10.0]] * 2), str.split)
    np.testing.assert_allclose(scores["acc_norm"], [[7, 10], [2, 2]])


@pytest.fixture
def subject():
    return tiny_subject()


@pytest.fixture
def both():
    endings = (" of bread", " of a long day", " nothing", " it")
    items = [Item(f"The {n} slices" + " or more" * 9 * n, endings, n % 4) for n in range(6)]
    return {COMPLETION: items, HARNESS: items}


@pytest.fixture
def rounds(subject, tmp_path):
    def loaded(methods, **settings):
        found = Rounds(tmp_path / "rounds.npz", settings, count=3)
        found.load(methods, items=6)
        return found

    return loaded


def test_both_methods_choose_the_same_and_every_round_gives_a_ratio(subject, both, rounds):
    measured = rounds([*our_methods(subject), item_by_item_method(subject)])
    assert list(measured.measure(subject, both)) == [1, 2, 3]
    found = results_of(subject, measured.finished(), both)
    assert found["trees"]["acc"] == found["one_item"]["acc"]
    assert found["one_item"]["agreement"]["acc"]["other_choices"] == []
    assert found["one_item"]["agreement"]["largest_difference"] < 1e-3
    assert len(found["one_item"]["ratios"]) == len(found["trees"]["seconds_by_round"]) == 3


def test_an_interrupted_call_continues_after_its_last_round(subject, both, rounds):
    methods = our_methods(subject)
    interrupted = rounds(methods)
    assert next(interrupted.measure(subject, both)) == 1
    assert interrupted.finished_items(6).tolist() == [0, 3]
    again = rounds(methods)
    assert list(again.measure(subject, both)) == [1, 2, 3]
    assert again.runs[0].seconds[0] == interrupted.runs[0].seconds[0]
    undisturbed = rounds(methods)  # the file was removed, so this call starts from nothing
    list(undisturbed.measure(subject, both))
    np.testing.assert_array_equal(again.runs[0].nats, undisturbed.runs[0].nats)


def test_rounds_of_other_settings_are_not_continued(subject, both, rounds):
    methods = our_methods(subject)
    next(rounds(methods, commit="a").measure(subject, both))
    with pytest.raises(ValueError, match="delete it or give another --out"):
        rounds(methods, commit="b")
