"""Synthetic markets: one seed one market, within bounds, with the statistics that were asked for."""

import math
from dataclasses import replace
from itertools import groupby
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.local.spotset import read_spotset, write_spotset
from cloud.local.synthetic import Hazard, SyntheticParameters, synthesise

SMALL = SyntheticParameters(regions=2, zones_per_region=2, days=2.0)
LONG = SyntheticParameters(regions=8, zones_per_region=3, days=30.0)


def runs(zone):
    """Completed spells in ticks: (plenty?, length)."""
    found = [(up, len(list(run))) for up, run in groupby(count > 0 for count in zone.data)]
    return found[1:-1]


@pytest.fixture(scope="module")
def long_market():
    return synthesise(LONG, 11)


@given(seed=st.integers(-(2**40), 2**40))
@settings(deadline=None, max_examples=10)
def test_a_seed_is_a_market(seed):
    assert synthesise(SMALL, seed) == synthesise(SMALL, seed)
    assert synthesise(SMALL, seed).zones != synthesise(SMALL, seed + 1).zones


def test_a_market_is_the_same_everywhere():
    # The numbers of one machine, kept: a change of the generator must be wanted.
    market = synthesise(SMALL, 7)
    assert [zone.zone for zone in market.zones] == ["syn-1a", "syn-1b", "syn-2a", "syn-2b"]
    assert [sum(zone.data) for zone in market.zones] == [4529, 6792, 4033, 6933]


def test_one_zone_more_leaves_the_others_as_they_are():
    few, many = synthesise(SMALL, 3), synthesise(replace(SMALL, zones_per_region=4, regions=3), 3)
    by_name = {zone.zone: zone for zone in many.zones}
    assert all(by_name[zone.zone] == zone for zone in few.zones)


@given(
    seed=st.integers(0, 1000),
    most=st.integers(1, 40),
    dip_share=st.floats(0, 0.9),
    ratio=st.floats(0.05, 1.0),
    days=st.floats(0.1, 2.0),
    gap=st.floats(60, 3600),
)
@settings(deadline=None, max_examples=30)
def test_everything_is_within_bounds(seed, most, dip_share, ratio, days, gap):
    parameters = replace(SMALL, most=most, dip_share=dip_share, spot_ratio=ratio, days=days, gap_seconds=gap)
    market = synthesise(parameters, seed)
    assert market.ticks == parameters.ticks >= 1
    for zone in market.zones:
        assert len(zone.data) == len(zone.prices) == market.ticks
        assert all(0 <= count <= most for count in zone.data)
        assert all(0 < price <= zone.on_demand_price for price in zone.prices)


def test_it_is_a_spotset(tmp_path):
    market = synthesise(SMALL, 5)
    write_spotset(market, tmp_path)
    assert read_spotset(tmp_path) == market


def test_spells_end_as_their_hazard_says():
    # One kind of zone, no storms: the mean and the median follow from the survival function.
    plain = replace(LONG, quality_spread=0.0, storm_share=0.0, gap_seconds=60.0, days=20.0)
    market = synthesise(plain, 2)
    for wanted, hazard in ((True, plain.plenty), (False, plain.drought)):
        hours = [length / 60 for zone in market.zones for up, length in runs(zone) if up is wanted]
        for age in (0.25, 1.0, 4.0):
            longer = sum(length > age for length in hours) / len(hours)
            assert longer == pytest.approx(hazard.survival(age), abs=0.05)


def test_survival_is_the_integral_of_the_hazard():
    hazard = Hazard(shape=1.2, scale=0.4, rate=0.04)
    steps = 20_000
    total = sum(hazard.at(5 * (step + 0.5) / steps) for step in range(steps)) * 5 / steps
    assert hazard.survival(5.0) == pytest.approx(math.exp(-total), rel=1e-4)


def test_dips_take_their_share_of_plenty(long_market):
    plenty = [count for zone in long_market.zones for count in zone.data if count]
    low = [count for count in plenty if count < LONG.most]
    assert len(low) / len(plenty) == pytest.approx(LONG.dip_share, abs=0.03)
    assert fmean(low) == pytest.approx(LONG.most / 2, abs=0.5)


def test_prices_follow_their_ratio_and_move_as_often_as_asked(long_market):
    ratios = [zone.spot_price / zone.on_demand_price for zone in long_market.zones]
    assert fmean(ratios) == pytest.approx(LONG.spot_ratio, abs=0.06)
    moves = [
        abs(math.log(later / earlier))
        for zone in long_market.zones
        for earlier, later in zip(zone.prices, zone.prices[1:], strict=False)
        if later != earlier
    ]
    assert len(moves) / len(ratios) / LONG.days == pytest.approx(LONG.price_changes_per_day, rel=0.1)
    assert fmean(moves) == pytest.approx(LONG.price_change_size, rel=0.15)


def shared_losses(market, *, same_region):
    near = max(1, round(600 / market.gap_seconds))
    asked = fell = 0
    for zone in market.zones:
        for other in market.zones:
            if other is zone or (other.region == zone.region) is not same_region:
                continue
            falls = {t for t in range(1, market.ticks) if other.data[t] == 0 < other.data[t - 1]}
            for tick in range(near + 1, market.ticks):
                if zone.data[tick] == 0 < zone.data[tick - 1] and other.data[tick - near - 1]:
                    asked += 1
                    fell += any(tick + step in falls for step in range(-near, near + 1))
    return fell / asked


def test_zones_of_a_region_fall_together_and_others_do_not(long_market):
    together, apart = (shared_losses(long_market, same_region=same) for same in (True, False))
    assert together > 2.0 * apart
    calm = synthesise(replace(LONG, storm_share=0.0), 11)
    together, apart = (shared_losses(calm, same_region=same) for same in (True, False))
    assert together == pytest.approx(apart, abs=0.05)


def test_a_young_spell_is_in_more_danger_than_an_old_one(long_market):
    hours = [
        length * LONG.gap_seconds / 3600 for zone in long_market.zones for up, length in runs(zone) if up
    ]
    young = sum(length <= 0.5 for length in hours) / len(hours)
    old = [length for length in hours if length > 6.0]
    assert young > 0.25
    assert sum(length <= 6.5 for length in old) / len(old) < 0.2


def test_the_mean_over_markets_is_near_the_recorded_traces():
    markets = [synthesise(SyntheticParameters(), seed) for seed in range(12)]
    zones = [zone for market in markets for zone in market.zones]
    available = [sum(count > 0 for count in zone.data) / len(zone.data) for zone in zones]
    assert fmean(available) == pytest.approx(0.65, abs=0.07)
    plenty = sorted(length * 300 / 3600 for zone in zones for up, length in runs(zone) if up)
    assert plenty[len(plenty) // 2] == pytest.approx(0.68, abs=0.2)
    assert fmean(plenty) == pytest.approx(2.7, abs=0.8)


def test_storms_leave_the_mean_hazard_alone():
    parameters = SyntheticParameters()
    mean = (
        parameters.storm_share * parameters.storm_factor
        + (1 - parameters.storm_share) * parameters.calm_factor
    )
    assert mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match="below 1"):
        SyntheticParameters(storm_share=0.5, storm_factor=3.0)


def test_zones_have_names_beyond_z():
    market = synthesise(replace(SMALL, regions=1, zones_per_region=28, days=0.01), 1)
    assert [zone.zone for zone in market.zones][25:] == ["syn-1z", "syn-1aa", "syn-1ab"]
