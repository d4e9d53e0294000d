"""The HellaSwag benchmark tells a float tie from another answer, and its ways find the same."""

import numpy as np
import pytest

from bench.hellaswag_agreement import agreement, scores_of
from bench.hellaswag_speed import COMPLETION, HARNESS, measure, results_of
from bench.hellaswag_ways import one_item_way, our_ways
from eval.multiple_choice import Item
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


def test_ours_and_the_stand_in_choose_alike_and_every_round_gives_a_ratio():
    subject = tiny_subject()
    endings = (" of bread", " of a long day", " nothing", " it")
    items = [Item(f"The {n} slices" + " or more" * 9 * n, endings, n % 4) for n in range(6)]
    both = {COMPLETION: items, HARNESS: items}
    ways = [*our_ways(subject), one_item_way(subject)]
    found = results_of(subject, measure(subject, ways, both, rounds=2), both)
    assert found["trees"]["acc"] == found["one_item"]["acc"]
    assert found["one_item"]["agreement"]["acc"]["other_choices"] == []
    assert found["one_item"]["agreement"]["largest_difference"] < 1e-3
    assert len(found["one_item"]["ratios"]) == len(found["trees"]["seconds_by_round"]) == 2
