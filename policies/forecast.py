"""What the calendar month (UTC) will have cost, by what its hours cost so far.

What it decides: nothing; it counts. The month's sum so far, and for every hour that is left the mean of the
last seven days, or of as many whole hours as there are. How far that may be off goes by how much the last
days differed from each other.
Why: a budget is for a month, and a pool that was made bigger on the 20th is over it on the 28th.
Never: a figure from less than an hour; bounds from less than three whole days; a lower bound below what is
spent already.

Example: $2 an hour since the month began three and a half days ago.
    >>> from datetime import UTC, datetime
    >>> begin = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() // 3600)
    >>> found = forecast({begin + n: 2.0 for n in range(84)}, now=(begin + 84) * 3600.0)
    >>> found.so_far, found.expected, found.low, found.high
    (168.0, 1440.0, 1440.0, 1440.0)
    >>> found.text
    '2026-11 will cost about $1,440.00 ($1,440.00 to $1,440.00), by the pace of 84 hours; so far $168.00'
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from policies.economics import HOUR
from policies.value import value

_WINDOW: Final = 7 * 24
_DAY: Final = 24
_LEAST_DAYS: Final = 3
_STUDENT: Final = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94)
"""Student's t for 19 of 20 on one side, by degrees of freedom from 1 on."""


@value
class Forecast:
    """A month's cost in USD. None: too little was counted."""

    month: str
    so_far: float
    since: float  # begin of what is counted in `so_far`, seconds since the epoch
    expected: float | None
    low: float | None  # 19 of 20 such months end above it, if days differ no more than those seen
    high: float | None  # 19 of 20 end below it
    hours: int  # whole hours that the pace is taken from
    text: str


def forecast(hourly: Mapping[int, float], *, now: float) -> Forecast:
    """The month of `now` (seconds since the epoch). `hourly`: USD by hour since the epoch, from the first one
    that was counted on; an hour that is missing cost nothing."""
    first, end = _month(now)
    present = int(now // HOUR)
    begin = min(hourly, default=present)
    so_far = math.fsum(usd for hour, usd in hourly.items() if first <= hour <= present)
    whole = range(max(begin, present - _WINDOW), present)
    since = max(begin, first) * HOUR
    left = max(0.0, end - now / HOUR)
    expected = low = high = None
    if whole:
        pace = math.fsum(hourly.get(hour, 0.0) for hour in whole) / len(whole)
        expected = so_far + pace * left
        off = _off(hourly, whole, left / _DAY)
        if off is not None:
            low, high = max(so_far, expected - off), expected + off
    month = datetime.fromtimestamp(now, UTC).strftime("%Y-%m")
    return Forecast(
        month=month,
        so_far=so_far,
        since=since,
        expected=expected,
        low=low,
        high=high,
        hours=len(whole),
        text=_text(month, so_far, expected, low, high, len(whole)),
    )


def _month(now: float) -> tuple[int, int]:
    """The first hour of the month, and the first one after it."""
    at = datetime.fromtimestamp(now, UTC)
    first = datetime(at.year, at.month, 1, tzinfo=UTC)
    after = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return int(first.timestamp() // HOUR), int(after.timestamp() // HOUR)


def _off(hourly: Mapping[int, float], whole: range, left: float) -> float | None:
    """How far the rest of the month (in days) may be from the pace; None with too few whole days.

    Days are taken to differ by chance alone: the mean of n of them is off, and so is each that is to come.
    """
    days = len(whole) // _DAY
    if days < _LEAST_DAYS:
        return None
    ends = [whole.stop - _DAY * back for back in range(days)]
    sums = [math.fsum(hourly.get(hour, 0.0) for hour in range(end - _DAY, end)) for end in ends]
    return _STUDENT[days - 2] * statistics.stdev(sums) * math.sqrt(left + left * left / days)


def _text(
    month: str, so_far: float, expected: float | None, low: float | None, high: float | None, hours: int
) -> str:
    spent = f"so far ${so_far:,.2f}"
    if expected is None:
        return f"{month}: {spent}; less than an hour was counted, which is too little to go by"
    pace = f"by the pace of {hours} hour{'' if hours == 1 else 's'}"
    if low is None or high is None:
        return f"{month} may cost about ${expected:,.2f}, {pace}, which is little to go by; {spent}"
    return f"{month} will cost about ${expected:,.2f} (${low:,.2f} to ${high:,.2f}), {pace}; {spent}"
