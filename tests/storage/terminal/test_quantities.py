"""Counts, sizes and durations as a person reads them, in few characters."""

import math

import pytest

from storage.terminal.quantities import counted, data_size, duration, short


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (7134, "7.13k"), (432_100, "432k"), (1.234e6, "1.23M")],
)
def test_counts_have_three_digits(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (61, "0:01:01"), (90061, "25:01:01"), (1e6, "11d 13h"), (math.nan, "0:00:00")],
)
def test_durations_are_hours_minutes_seconds(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (812, "812 bytes"), (20_300, "20.3 kB"), (1.25e9, "1.2 GB")]
)
def test_sizes_have_their_unit(size, text):
    assert data_size(size) == text


def test_one_thing_is_singular():
    assert [counted(n, "shard") for n in (0, 1, 1000)] == ["0 shards", "1 shard", "1,000 shards"]
    assert counted(2, "copy", "copies") == "2 copies"
