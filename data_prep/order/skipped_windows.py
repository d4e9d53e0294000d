"""Ranges of windows that a run leaves out, such as around a loss spike (--skip-windows).

The windows of a step are always consecutive, so a step that would touch a range begins after it.
The order stays a pure function: of the data set, the seed, the cursor and these ranges.

Two things are called "skipped". Here it is windows: the run never reads them. Elsewhere
(`train/skipped` in metrics.jsonl) it is the update of a step with a bad loss or gradient. Such a
step has read its windows, and the cursor moves past them as after any other step.
"""

from collections.abc import Iterable

_MOST_DIGITS = 12  # of a window's number: no run reads 10^12 windows
Skips = tuple[tuple[int, int], ...]
"""First and stop of each range; `after_skips` needs them as `parse_skips` returns them."""


def parse_skips(ranges: Iterable[str]) -> Skips:
    """First and stop of each range `a:b`, sorted by the first.

    Raises: ValueError for anything else.
    """
    found = []
    for text in ranges:
        first, colon, stop = text.partition(":")
        valid = bool(colon) and all(map(_is_number, (first, stop)))
        if not valid or int(first) >= int(stop):
            raise ValueError(
                f"skip_windows {text} is no range of windows; write it like 12000:14000, from the "
                "first window up to, not including, the last number, each of at most "
                f"{_MOST_DIGITS} digits"
            )
        found.append((int(first), int(stop)))
    return tuple(sorted(found))


def _is_number(text: str) -> bool:
    # `isdigit` alone accepts characters such as "²", which `int` refuses.
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def after_skips(window: int, count: int, skips: Skips) -> int:
    """The first window, from `window` on, where a step of `count` windows touches no range.

    `skips` must be sorted by the first window of each range; ranges may overlap. A step that would
    touch a range moves behind it as a whole, so up to `count - 1` windows right before the range
    are left out as well.
    """
    for first, stop in skips:
        if window < stop and first < window + count:
            window = stop
    return window
