"""The shares of a mixture: within one window of their targets at every window."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.order.shares import Assignment, WeightStretch, in_windows

WEIGHTS = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)


def counted(assignment, sources, first, count):
    """How many windows of each source there are among the first 1, 2, 3, … from `first` on."""
    chosen = assignment.sources(first, count)
    return np.cumsum(chosen[:, None] == np.arange(sources), axis=0)


def off_target(counts, weights):
    """The largest distance of a count from its target; exact, since all is multiplied out."""
    period = sum(weights)
    windows = np.arange(1, len(counts) + 1)[:, None]
    return Fraction(int(np.abs(counts * period - windows * np.array(weights)).max()), period)


@given(drawn=WEIGHTS)
@settings(max_examples=1000)
def test_every_share_is_within_one_window_of_its_target_at_every_window(drawn):
    weights = in_windows([Fraction(weight) for weight in drawn])
    period, taking = sum(weights), sum(weight > 0 for weight in weights)
    assignment = Assignment([WeightStretch(0, weights)])
    counts = counted(assignment, len(weights), 0, 2 * period + 3)
    bound = 1 - Fraction(1, 2 * taking - 2) if taking > 1 else 0
    assert off_target(counts, weights) <= bound  # Tijdeman's bound, which is less than 1
    assert counts[period - 1].tolist() == list(weights)  # nothing is left over
    assert [*map(Fraction, weights)] == [Fraction(w, sum(drawn)) * period for w in drawn]


@given(
    drawn=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=1),
    lengths=st.lists(st.integers(1, 60), min_size=8, max_size=8),
    at=st.integers(0, 400),
)
@settings(max_examples=200)
def test_a_change_begins_a_new_count_and_every_window_is_found_again(drawn, lengths, at):
    drawn = drawn[:8]
    firsts = [0, *np.cumsum(lengths[: len(drawn) - 1]).tolist()]
    rows = [in_windows([Fraction(weight) for weight in row]) for row in drawn]
    assignment = Assignment([WeightStretch(*pair) for pair in zip(firsts, rows, strict=True)])
    for number, (first, weights) in enumerate(zip(firsts, rows, strict=True)):
        length = lengths[number] if number + 1 < len(rows) else 100
        assert off_target(counted(assignment, 3, first, length), weights) < 1
    whole = assignment.sources(0, at + 1)
    before = np.bincount(whole[:at], minlength=3)
    assert assignment.counts(at).tolist() == before.tolist()
    # Windows of a source follow one another, over changes too, and lead back to where they are.
    source = int(whole[at])
    assert assignment.window(source, int(before[source])) == at
    assert assignment.sources(at, 0).tolist() == []
    near, found = assignment.sources(at, 40), assignment.by_source(at, 40)
    assert [one for one, _, _ in found] == sorted(set(near.tolist()))
    assert all(own == before[one] for one, own, _ in found)
    assert all(rows.tolist() == np.flatnonzero(near == one).tolist() for one, _, rows in found)


def test_a_source_that_is_left_out_from_some_window_on_has_no_further_window():
    assignment = Assignment([WeightStretch(0, (1, 1)), WeightStretch(4, (1, 0))])
    assert assignment.sources(0, 7).tolist()[4:] == [0, 0, 0]
    assert assignment.window(1, 1) in (2, 3)
    assert assignment.window(1, 2) is None
    assert assignment.window(0, 5) == 7


def test_the_assignment_never_changes():
    """Runs depend on it: these are the windows of 0.5, 0.3 and 0.2, and of thirds."""
    half = Assignment([WeightStretch(0, (5, 3, 2))])
    assert half.sources(0, 20).tolist() == HALF
    assert half.sources(10**12 + 3, 7).tolist() == HALF[3:10]
    assert Assignment([WeightStretch(0, (1, 1, 1))]).sources(0, 6).tolist() == THIRDS


HALF = [0, 1, 0, 2, 0, 1, 0, 2, 0, 1] * 2
THIRDS = [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["0", "0"], "weights 0 0: one of them must be more than 0"),
        (["0.333333", "0.666667"], "exact only over 1,000,000 windows.*round them to fewer digits"),
    ],
)
def test_weights_without_exact_shares_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        in_windows([Fraction(weight) for weight in weights])


def test_changes_must_rise():
    with pytest.raises(ValueError, match="they must rise from 0"):
        Assignment([WeightStretch(0, (1, 1)), WeightStretch(0, (1, 2))])
