"""What is asked of a pool: its tokens by hour of the week, and how they grow.

What it decides: nothing; it reads a history of hours and says what an hour to come will ask for.
Why: traffic of people has a week, and a pool that is sized by a mean is short each afternoon. Demand is the
95th percentile of each hour of the week, brought to today's level, carried on by growth.
Growth is the median of all comparisons of two days that are whole weeks apart, hour against hour, each with
the weight of the weeks between them (Theil and Sen's estimator): one bad day, a spike, or hours without a
gateway do not move it.
Never: a trend from less than two weeks, or a week's pattern from less than one. An hour without requests
says nothing of growth: an idle pool looks just like a gateway that is down.

Hours are whole hours since the epoch (`seconds // 3600`), in UTC; those of a week count from Monday 0:00.
Rates are tokens a second on the mean of an hour; what happens within it is the headroom's business.

Example:
    >>> history = {hour: 3600.0 * 100 * 1.1 ** (hour / WEEK) for hour in range(4 * WEEK)}
    >>> found = demand(history, now=4 * WEEK)
    >>> round(found.growth.weekly, 3), round(found.at(4 * WEEK)), round(found.at(8 * WEEK))
    (1.1, 146, 214)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from policies.value import value

DAY = 24
WEEK = 7 * DAY
LEAST = WEEK
"""Hours of history below which there is no plan."""
LEAST_FOR_GROWTH = 2 * WEEK
GROWTH_OVER = 4 * WEEK
"""Hours of the newest history that growth is taken from."""

_MONDAY = 4 * DAY  # the first Monday after the epoch, which began on a Thursday
_SHARE = 0.95
_LEAST_PAIRS = 3
_FASTEST = 2.0  # a week: what doubles faster is a beginning, and no rate goes on like that
_SPIKE = 2.0  # times what any other week had
_OUTER = 0.1  # share of all weights below the lower, and above the upper end of what is likely


@value
class Growth:
    """How demand changes from week to week."""

    weekly: float = 1.0  # factor from one week to the next
    low: float = 1.0  # one of ten comparisons is lower
    high: float = 1.0  # one of ten comparisons is higher
    pairs: int = 0  # comparisons; 0: the factor is not measured
    capped: bool = False  # it was faster than anything that goes on for long


@value
class Spike:
    """One hour that stands out: its demand alone, and the highest `without` it, in tokens a second."""

    hour: int
    rate: float
    without: float


@value
class Demand:
    """What is asked for at any hour."""

    now: int
    week: tuple[float, ...]  # tokens a second for each hour of the week at `now`; 0: no requests
    growth: Growth
    hours: int  # from the first request to `now`
    active: int  # hours with requests among them
    weeks: int  # most samples of an hour of the week
    spike: Spike | None = None  # where the highest of `week` rests on one hour alone

    def at(self, hour: int, weekly: float | None = None) -> float:
        """Tokens a second in that hour, at the measured growth or another."""
        factor = self.growth.weekly if weekly is None else weekly
        grown: float = factor ** ((hour - self.now) / WEEK)
        return self.week[of_week(hour)] * grown

    @property
    def peak(self) -> float:
        """The highest of the week, at `now`."""
        return max(self.week)


@value
class TooLittle:
    """Why there is no plan: so many `hours` of history of those it `needs`; 0: no request at all."""

    hours: int
    needs: int = LEAST


def of_week(hour: int) -> int:
    """The hour of the week, 0 is Monday 0:00 to 1:00 UTC.

    >>> of_week(0) == 3 * DAY, of_week(96)  # the epoch began on a Thursday
    (True, 0)
    """
    return (hour - _MONDAY) % WEEK


def demand(tokens: Mapping[int, float], now: int, weekly: float | None = None) -> Demand | TooLittle:
    """What a history of `hour: tokens` says. The hour `now` goes on and is not read, nor is what comes after.

    `weekly`: a factor of growth that is given, and takes the place of the measured one.
    """
    past = {hour: count for hour, count in tokens.items() if hour < now and count > 0.0}
    if not past:
        return TooLittle(hours=0)
    hours = now - min(past)
    if hours < LEAST:
        return TooLittle(hours=hours)
    measured = growth_of(past, now) if hours >= LEAST_FOR_GROWTH else Growth()
    growth = measured if weekly is None else Growth(weekly=weekly, low=weekly, high=weekly)
    samples = _by_hour_of_week(past, now, measured.weekly)
    return Demand(
        now=now,
        week=tuple(_p95([rate for rate, _ in found]) for found in samples),
        growth=growth,
        hours=hours,
        active=len(past),
        weeks=max(map(len, samples)),
        spike=_spike(samples),
    )


def growth_of(past: Mapping[int, float], now: int) -> Growth:
    """Growth over the newest four weeks; not measured where too few days can be compared."""
    slopes = sorted(_slopes(past, now))
    if len(slopes) < _LEAST_PAIRS:
        return Growth()
    middle = _bounded(_quantile(slopes, 0.5))
    return Growth(
        weekly=middle,
        low=_bounded(_quantile(slopes, _OUTER)),
        high=_bounded(_quantile(slopes, 1.0 - _OUTER)),
        pairs=len(slopes),
        capped=middle in (_FASTEST, 1.0 / _FASTEST),
    )


def _slopes(past: Mapping[int, float], now: int) -> Iterator[tuple[float, int]]:
    """Of each two days that are whole weeks apart: the logarithm of the weekly factor between them, and how
    many weeks they are apart."""
    days = GROWTH_OVER // DAY
    for later in range(days):
        for weeks in range(1, (days - 1 - later) // 7 + 1):
            before = after = 0.0
            for hour in range(now - (later + 1) * DAY, now - later * DAY):
                old, new = past.get(hour - weeks * WEEK, 0.0), past.get(hour, 0.0)
                if old > 0.0 and new > 0.0:
                    before, after = before + old, after + new
            if before > 0.0:
                yield math.log(after / before) / weeks, weeks


def _quantile(ordered: Sequence[tuple[float, int]], share: float) -> float:
    """The first value up to which at least that share of all weights lies."""
    wanted = share * sum(weight for _, weight in ordered)
    sums = accumulate(weight for _, weight in ordered)
    return next(value for (value, _), sum_ in zip(ordered, sums, strict=True) if sum_ >= wanted)


def _bounded(slope: float) -> float:
    """The factor of a slope, held to what may go on for a while."""
    most = math.log(_FASTEST)
    return _FASTEST if slope >= most else 1.0 / _FASTEST if slope <= -most else math.exp(slope)


def _by_hour_of_week(past: Mapping[int, float], now: int, weekly: float) -> list[list[tuple[float, int]]]:
    """Of each hour of the week: (tokens a second at today's level, hour), highest last. A week without
    requests at that hour counts as 0."""
    found: list[list[tuple[float, int]]] = [[] for _ in range(WEEK)]
    for hour in range(min(past), now):
        level = weekly ** ((now - hour) / WEEK)
        found[of_week(hour)].append((past.get(hour, 0.0) / 3600.0 * level, hour))
    return [sorted(rates) for rates in found]


def _p95(ordered: Sequence[float]) -> float:
    """The nearest-rank percentile; below twenty weeks it is the highest."""
    return ordered[math.ceil(_SHARE * len(ordered)) - 1] if ordered else 0.0


def _spike(samples: Sequence[Sequence[tuple[float, int]]]) -> Spike | None:
    """The hour that sets the peak, where no other week came near it."""
    rate, hour = max(of_hour[-1] for of_hour in samples if of_hour)
    if max(map(len, samples)) < 2:
        return None
    others = [one for of_hour in samples for one, at in of_hour[-2:] if at != hour]
    without = max(others, default=0.0)
    return Spike(hour=hour, rate=rate, without=without) if rate > _SPIKE * without else None
