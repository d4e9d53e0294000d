"""Counts, sizes and durations as a person reads them, in few characters."""

import math

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_MANY_HOURS = 100
_STEPS = ((1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))


def short(value: float) -> str:
    """A count in three digits and a letter: 432k, 1.23M, 9.95B."""
    if not math.isfinite(value):
        return str(value)
    unit, letter = max((s for s in _STEPS if s[0] <= abs(value)), default=(1.0, ""))
    scaled = value / unit
    digits = 0 if not letter or scaled >= 100 else 1 if scaled >= 10 else 2
    return f"{scaled:.{digits}f}{letter}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss; from 100 hours on as days and hours."""
    total = round(seconds) if math.isfinite(seconds) else 0
    if total >= _MANY_HOURS * _HOUR:
        return f"{total // _DAY:,}d {total // _HOUR % 24:02d}h"
    return f"{total // _HOUR}:{total // _MINUTE % 60:02d}:{total % _MINUTE:02d}"


def data_size(size: float) -> str:
    """A number of bytes in its unit: 812 bytes, 20.3 kB, 1.2 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its word: 1 shard, 2 shards; `many` if that is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
