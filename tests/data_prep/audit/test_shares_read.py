"""The count of a mixture's shares finds an order that keeps them only in the long run."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep.audit.run_record import RunRecord, StepRecord
from data_prep.audit.shares_read import read_epochs, read_shares, share_problems
from data_prep.order.epoch_index import EpochIndex
from data_prep.order.shares import Assignment, WeightStretch
from data_prep.order.training_data import open_training_data
from data_prep.order.weights import WeightStart
from data_prep.order.windows import SourceWindows
from tests.data_sets import small_tokenizer, tiny_data_set

STEPS = tuple(StepRecord(step, 10 * step, 10, "", False) for step in range(6))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for seed, name in enumerate("ab"):
        tiny_data_set(folder / name, 20, seed, tokenizer=small_tokenizer(), mean_length=20)
    return open_training_data((folder / "a:0.6", folder / "b:0.4"))


class Planted:
    """Windows whose sources are given one by one, perhaps with one that is not the next."""

    def __init__(self, data, sources, jump_at=None):
        self.streams = data.stream(7).streams
        self.sources = np.array(sources)
        self.jump_at = jump_at

    def counts(self, window):
        return np.array([(self.sources[:window] == source).sum() for source in range(2)])

    def by_source(self, first, count):
        found = []
        for source in range(2):
            rows = np.flatnonzero(self.sources[first : first + count] == source)
            own = int(self.counts(first)[source]) + (source == self.jump_at)
            found.append(SourceWindows(source, self.streams[source], own, len(rows), rows))
        return [part for part in found if part.count]

    def window(self, source, own):
        raise NotImplementedError


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_distance_is_that_of_a_count_window_by_window(data, monkeypatch, block):
    monkeypatch.setattr("data_prep.audit.shares_read._BLOCK", block)
    starts = [WeightStart(3, 30, (Fraction(1), Fraction(3)))]
    found = read_shares(data, data.stream(7, starts), starts, STEPS[1:])
    assignment = Assignment([WeightStretch(0, (3, 2)), WeightStretch(30, (1, 3))])
    for stretch, first, parts in zip(found, (0, 30), ((0.6, 0.4), (0.25, 0.75)), strict=True):
        sources = assignment.sources(first, 30)
        expected = max(
            abs((sources[:n] == source).sum() - n * parts[source])
            for n in range(1, 31)
            for source in range(2)
        )
        assert stretch.distance == pytest.approx(expected)
    assert [(s.first, s.stop, s.counts) for s in found] == [(0, 30, (12, 8)), (30, 60, (8, 22))]
    assert share_problems(data, found, read_epochs(record(), data.stream(7, starts), 60)) == []


def record():
    return RunRecord(Path(), 7, 16, 10, "", STEPS, ())


def epochs_of(data):
    return read_epochs(record(), data.stream(7), 60)


def test_shares_that_are_right_only_in_the_end_are_found(data):
    found = read_shares(data, Planted(data, [0] * 36 + [1] * 24), [], STEPS)
    assert found[0].counts == (36, 24)
    assert share_problems(data, found, epochs_of(data)) == [
        "windows 0 to 59: a source is 14.40 windows from its weight"
    ]


def test_a_window_that_is_not_the_next_of_its_source_is_found(data):
    found = read_shares(data, Planted(data, [0, 1, 0, 1, 0] * 12, jump_at=1), [], STEPS)
    assert share_problems(data, found, epochs_of(data)) == [
        "windows 0 to 59: 24 are not the next ones of their source"
    ]


def test_an_epoch_with_a_document_twice_is_found(data, monkeypatch):
    true = EpochIndex.documents
    stream = data.stream(7, stored_indexes=False)
    monkeypatch.setattr(
        EpochIndex,
        "documents",
        lambda self, first, count: np.minimum(true(self, first, count), 16),
    )
    epochs = read_epochs(record(), stream, 60)
    assert [own.faulty for own in epochs] == [tuple(range(own.begun)) for own in epochs]
    assert "epoch 0 of b does not have each of its documents once" in share_problems(
        data, [], epochs
    )
