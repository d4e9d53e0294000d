"""Times in few characters."""

import pytest

from storage.terminal.short_times import short_time


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (90, "1.5 min"), (3600, "1.0 h"), (86_399, "24.0 h"), (86_400, "1.0 days")],
)
def test_a_time_has_the_largest_unit_that_it_reaches(seconds, text):
    assert short_time(seconds) == text
