"""Windows of the training stream that a run leaves out, such as those around a loss spike.

A step's windows stay one unbroken run of the stream: a step that would touch a range begins behind
it. So the order is still a pure function, of the data set, the seed, the cursor and these ranges.
"""

from collections.abc import Iterable

Skips = tuple[tuple[int, int], ...]


def parse_skips(ranges: Iterable[str]) -> Skips:
    """First and stop of each range `a:b`, sorted.

    Raises: ValueError for anything else.
    """
    found = []
    for text in ranges:
        first, colon, stop = text.partition(":")
        whole = bool(colon) and all(part.isascii() and part.isdigit() for part in (first, stop))
        if not whole or int(first) >= int(stop):
            raise ValueError(
                f"skip_windows {text} is no range of windows; write it like 12000:14000, from the "
                "first window up to, not including, the last number"
            )
        found.append((int(first), int(stop)))
    return tuple(sorted(found))


def after_skips(window: int, count: int, skips: Skips) -> int:
    """The first window, from `window` on, where `count` windows touch no range."""
    for first, stop in skips:
        if window < stop and first < window + count:
            window = stop
    return window
