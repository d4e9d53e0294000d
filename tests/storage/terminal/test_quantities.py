"""Large numbers and times in few characters."""

import pytest

from storage.terminal.quantities import short_count, short_time


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (4088, "4.1K"),
        (124_475_904, "124M"),
        (1.56e9, "1.6B"),
        (3e13, "30.0T"),
    ],
)
def test_a_count_has_few_characters(count, text):
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (90, "1.5 min"), (3600, "1.0 h"), (86_399, "24.0 h"), (86_400, "1.0 days")],
)
def test_a_time_has_the_largest_unit_that_it_reaches(seconds, text):
    assert short_time(seconds) == text
