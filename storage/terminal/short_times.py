"""Times in few characters, for tables."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def short_time(seconds: float) -> str:
    """A time in the largest unit of which it is 1 or more: 42.0 s, 12.3 min, 5.1 h, 3.2 days."""
    for size, unit in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
