"""The month's forecast: right for what is even, honest about few data, never below what is spent."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.forecast import Forecast, forecast

NOVEMBER = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp() // 3600)
"""A month of 30 days."""


def at(hours: float) -> float:
    return (NOVEMBER + hours) * 3600.0


def even(hours: int, usd: float = 2.0, begin: int = NOVEMBER) -> dict[int, float]:
    return {begin + n: usd for n in range(hours)}


def test_an_even_pace_goes_on_to_the_end_of_the_month() -> None:
    found = forecast(even(240), now=at(240))
    assert (found.so_far, found.expected, found.low, found.high) == (480.0, 1440.0, 1440.0, 1440.0)
    assert (found.month, found.since, found.hours) == ("2026-11", at(0), 168)


def test_the_present_hour_counts_as_far_as_it_has_come_and_sets_no_pace() -> None:
    hourly = even(240) | {NOVEMBER + 240: 0.5}
    found = forecast(hourly, now=at(240.25))
    assert found.so_far == 480.5
    assert found.expected == pytest.approx(480.5 + 2 * 479.75)


def test_the_last_seven_days_set_the_pace() -> None:
    hourly = even(240, 1.0) | even(168, 10.0, NOVEMBER + 240)
    found = forecast(hourly, now=at(408))
    assert found.expected == pytest.approx(240 + 1680 + 312 * 10.0)


def test_a_pool_that_stopped_costs_less_than_it_did() -> None:
    found = forecast(even(84), now=at(168))
    assert found.so_far == 168.0
    assert found.expected == pytest.approx(168 + 552)  # half of the window cost nothing


def test_the_month_before_sets_the_pace_of_the_first_days_and_is_not_in_the_sum() -> None:
    found = forecast(even(100, 3.0, NOVEMBER - 96), now=at(4))
    assert found.so_far == 12.0
    assert found.expected == pytest.approx(720 * 3.0)
    assert found.since == at(0)


def test_counting_that_began_within_the_month_says_since_when() -> None:
    found = forecast(even(100, begin=NOVEMBER + 100), now=at(200))
    assert found.since == at(100)
    assert found.so_far == 200.0


@pytest.mark.parametrize(
    ("hours", "now", "known", "bounded", "said"),
    [
        (0, 50.0, False, False, "less than an hour was counted"),
        (1, 0.9, False, False, "less than an hour was counted"),
        (1, 1.0, True, False, "may cost about $1,440.00, by the pace of 1 hour, which is little to go by"),
        (71, 71.0, True, False, "by the pace of 71 hours, which is little to go by; so far $142.00"),
        (72, 72.0, True, True, "2026-11 will cost about $1,440.00 ($1,440.00 to $1,440.00)"),
    ],
)  # fmt: skip
def test_few_data_are_told_as_few(hours: int, now: float, known: bool, bounded: bool, said: str) -> None:
    found = forecast(even(hours), now=at(now))
    assert (found.expected is not None) == known
    assert (found.low is not None, found.high is not None) == (bounded, bounded)
    assert said in found.text


def test_days_that_differ_widen_the_bounds_and_more_days_narrow_them() -> None:
    def days(*usd: float) -> Forecast:
        hourly = {NOVEMBER + day * 24 + n: each / 24 for day, each in enumerate(usd) for n in range(24)}
        return forecast(hourly, now=at(24 * len(usd)))

    def width(found: Forecast) -> float:
        assert found.high is not None
        assert found.expected is not None
        return found.high - found.expected

    assert width(days(48, 48, 48)) == 0.0
    assert width(days(40, 48, 56)) > width(days(47, 48, 49)) > 0
    assert width(days(40, 48, 56, 40, 48, 56)) < width(days(40, 48, 56))


def test_the_bounds_close_as_the_month_ends() -> None:
    hourly = {NOVEMBER + n: 1.0 + (n // 24) % 3 for n in range(720)}
    widths = []
    for day in (10, 20, 29):
        seen = {hour: usd for hour, usd in hourly.items() if hour < NOVEMBER + day * 24}
        found = forecast(seen, now=at(day * 24))
        assert found.high is not None
        assert found.low is not None
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)


@given(costs=st.lists(st.floats(0, 1000), min_size=1, max_size=240), now=st.floats(0, 719))
def test_the_month_costs_at_least_what_it_has_cost(costs: list[float], now: float) -> None:
    hourly = {NOVEMBER + n: usd for n, usd in enumerate(costs)}
    found = forecast(hourly, now=at(now))
    for value in (found.low, found.expected, found.high):
        assert value is None or value >= found.so_far * (1 - 1e-9)
    if found.low is not None:
        assert found.expected is not None
        assert found.high is not None
        assert found.low <= found.expected <= found.high


@pytest.mark.parametrize(
    ("day", "hours"),
    [((2026, 12, 1), 744), ((2027, 2, 1), 672), ((2028, 2, 1), 696)],
    ids=["December", "February", "leap year"],
)
def test_months_have_their_own_length(day: tuple[int, int, int], hours: int) -> None:
    begin = int(datetime(*day, tzinfo=UTC).timestamp() // 3600)
    found = forecast(even(24, 1.0, begin), now=(begin + 24) * 3600.0)
    assert found.expected == pytest.approx(hours)
