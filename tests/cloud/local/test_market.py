"""The market: capacity and price at any time, the next change, and the integral of the price."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.local.market import SpotMarket, ZoneSeries, constant, from_spotset, liveliest_start, scripted
from cloud.local.spotset import SpotSet, SpotZone


def test_a_scripted_market():
    market = scripted({"a": [(0, 4, 1.0), (100, 2, 1.5), (250, 0, 2.0)], "b": [(0, 1, 9.0)]})
    assert [market.capacity("a", at) for at in (0, 99.9, 100, 249, 250, 1e9)] == [4, 4, 2, 2, 0, 0]
    assert [market.spot_price("a", at) for at in (0, 100, 300)] == [1.0, 1.5, 2.0]
    assert [market.next_change(at) for at in (0, 99, 100, 249.5, 250)] == [100, 100, 250, 250, math.inf]
    assert market.capacity("b", 5) == 1
    with pytest.raises(KeyError):
        market.capacity("c", 0)


def test_a_constant_market_never_changes():
    market = constant([("a", 3, 1.0, 4.0)])
    assert market.next_change(0) == math.inf
    assert market.capacity("a", 1e12) == 3
    assert market.zone("a").on_demand_price == 4.0
    assert market.spot_dollars("a", 0, 7200) == 2.0


def test_a_recorded_market_starts_again():
    zone = SpotZone(zone="a", region="r", spot_price=1.0, on_demand_price=4.0, data=(4, 4, 0, 2))
    market = from_spotset(SpotSet(name="s", gap_seconds=10.0, ticks=4, zones=(zone,)))
    assert [market.capacity("a", at) for at in (0, 15, 20, 35, 40, 60, 80)] == [4, 4, 0, 2, 4, 0, 4]
    changes, at = [], 0.0
    for _ in range(6):
        at = market.next_change(at)
        changes.append(at)
    assert changes == [20, 30, 40, 60, 70, 80]


def test_a_market_can_start_in_the_middle():
    zone = SpotZone(zone="a", region="r", spot_price=1.0, on_demand_price=4.0, data=(4, 0), prices=(1.0, 3.0))
    spotset = SpotSet(name="s", gap_seconds=3600.0, ticks=2, zones=(zone,))
    market = from_spotset(spotset, start=1800.0)
    assert [market.capacity("a", at) for at in (0, 1799, 1800, 5399, 5400)] == [4, 4, 0, 0, 4]
    assert market.next_change(0) == 1800
    assert market.next_change(1800) == 5400
    assert market.spot_dollars("a", 0, 7200) == pytest.approx(0.5 * 1 + 1 * 3 + 0.5 * 1)


def test_zones_can_be_picked():
    zones = tuple(
        SpotZone(zone=name, region="r", spot_price=1.0, on_demand_price=4.0, data=(1,)) for name in "abc"
    )
    spotset = SpotSet(name="s", gap_seconds=10.0, ticks=1, zones=zones)
    assert [series.zone for series in from_spotset(spotset, zones=["c", "a"]).zones] == ["a", "c"]
    with pytest.raises(ValueError, match="no zone x; it has a, b, c"):
        from_spotset(spotset, zones=["x"])


@pytest.mark.parametrize(
    ("times", "capacities", "prices"),
    [((1.0,), (1,), (1.0,)), ((0.0, 0.0), (1, 2), (1.0, 1.0)), ((0.0,), (1, 2), (1.0,)), ((), (), ())],
)
def test_series_that_make_no_sense(times, capacities, prices):
    with pytest.raises(ValueError, match="zone a"):
        ZoneSeries(
            zone="a", region="r", on_demand_price=1.0, times=times, capacities=capacities, prices=prices
        )


def test_a_market_needs_zones_and_a_period_longer_than_its_series():
    with pytest.raises(ValueError, match="at least one zone"):
        SpotMarket([])
    series = scripted({"a": [(0, 1, 1.0), (10, 1, 2.0)]}).zones
    with pytest.raises(ValueError, match="period"):
        SpotMarket(series, period=10)


rows = st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 9.0)), min_size=1, max_size=20)


@settings(deadline=None)
@given(rows=rows, start=st.floats(0, 500), begin=st.floats(0, 1000), length=st.floats(0, 1000))
def test_dollars_are_the_sum_over_small_steps(rows, start, begin, length):
    zone = SpotZone(
        zone="a",
        region="r",
        spot_price=1.0,
        on_demand_price=4.0,
        data=tuple(count for count, _ in rows),
        prices=tuple(price for _, price in rows),
    )
    market = from_spotset(SpotSet(name="s", gap_seconds=10.0, ticks=len(rows), zones=(zone,)), start=start)
    steps = 400
    small = sum(
        market.spot_price("a", begin + length * (step + 0.5) / steps) * length / steps / 3600
        for step in range(steps)
    )
    # A step that a change falls into may be wrong by the whole difference of prices.
    slack = (length / 10 + 2) * 9.0 * length / steps / 3600
    assert market.spot_dollars("a", begin, begin + length) == pytest.approx(small, abs=slack + 1e-9)


@settings(deadline=None)
@given(rows=rows, start=st.floats(0, 500), at=st.floats(0, 1000))
def test_nothing_changes_before_the_next_change(rows, start, at):
    zone = SpotZone(
        zone="a",
        region="r",
        spot_price=1.0,
        on_demand_price=4.0,
        data=tuple(count for count, _ in rows),
        prices=tuple(price for _, price in rows),
    )
    market = from_spotset(SpotSet(name="s", gap_seconds=10.0, ticks=len(rows), zones=(zone,)), start=start)
    upcoming = market.next_change(at)
    assert upcoming > at
    for share in (0.0, 0.25, 0.5, 0.75, 0.999):
        between = at + (upcoming - at) * share
        if upcoming - between < 1e-6:
            continue  # rounding may have put it past the change
        assert market.capacity("a", between) == market.capacity("a", at)
        assert market.spot_price("a", between) == market.spot_price("a", at)


def test_the_liveliest_window_is_found():
    counts = [4] * 100
    counts[40:50] = [4, 0, 4, 0, 4, 0, 4, 0, 4, 0]
    counts[80] = 0
    zone = SpotZone(zone="a", region="r", spot_price=1.0, on_demand_price=4.0, data=tuple(counts))
    market = from_spotset(SpotSet(name="s", gap_seconds=10.0, ticks=100, zones=(zone,)))
    start = liveliest_start(market, 120.0, held=3, until=1000.0)
    assert 280.0 <= start <= 410.0
    assert start + 120.0 > 490.0
    calm = constant([("a", 4, 1.0, 4.0)])
    assert liveliest_start(calm, 120.0, held=3, until=1000.0) == 0.0


def test_a_lively_window_has_room():
    """Where most nodes are lost nothing is left to lose: a drought shows nothing."""
    drought = [0] * 12
    drought[2] = drought[5] = drought[8] = 4
    counts = [4] * 50 + drought + [4] * 20 + [0] + [4] * 17
    zone = SpotZone(zone="a", region="r", spot_price=1.0, on_demand_price=4.0, data=tuple(counts))
    market = from_spotset(SpotSet(name="s", gap_seconds=10.0, ticks=100, zones=(zone,)))
    start = liveliest_start(market, 120.0, held=3, until=1000.0)
    inside = [market.capacity("a", start + at) for at in range(0, 120, 10)]
    assert 0 in inside
    assert inside.count(4) >= 6
