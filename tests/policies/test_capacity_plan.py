"""Units, nodes and the dates on which limits bind, held against walks that are counted another way."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest

from policies.capacity_plan import (
    HORIZON,
    Alternative,
    Limit,
    Plant,
    nodes_of,
    reached,
    schedule,
    scheduled,
    units_for,
)
from policies.demand import DAY, WEEK, Demand, Growth, of_week

NOW = 490_000


def asked(
    week: tuple[float, ...], weekly: float = 1.0, low: float | None = None, high: float | None = None
) -> Demand:
    growth = Growth(weekly=weekly, low=low or weekly, high=high or weekly, pairs=42)
    return Demand(now=NOW, week=week, growth=growth, hours=4 * WEEK, active=4 * WEEK, weeks=4)


def flat(rate: float, weekly: float = 1.0) -> Demand:
    return asked((rate,) * WEEK, weekly)


def hit(plants: list[Plant], limit: Limit) -> int | None:
    (found,) = reached(plants, [limit])
    return found.first


def replicas(bound: float, pool: str = "a") -> Limit:
    return Limit(name="replicas", bound=bound, counted="units", each={pool: 1.0})


# -- units and nodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "units"),
    [(0.0, 0), (1.0, 1), (350.0, 1), (350.1, 2), (700.0, 2), (3.5e14, 1_000_000_000_000)],
)
def test_units_keep_the_headroom_free(tokens: float, units: int) -> None:
    assert units_for(tokens, rate=500.0, headroom=0.3) == pytest.approx(units, rel=1e-8, abs=0)


@pytest.mark.parametrize("units", range(1, 400, 7))
def test_binary_fractions_buy_no_unit_more(units: int) -> None:
    """As many tokens as so many units do exactly, whatever 0.1 is in binary."""
    assert units_for(units * 333.3 * (1 - 0.1), rate=333.3, headroom=0.1) == units


def test_something_is_kept_where_nobody_asks() -> None:
    plant = Plant(pool="a", demand=flat(0.0), rate=500.0, least=2)
    assert plant.units(NOW) == 2
    assert plant.week() == (2,) * WEEK


def test_nodes_come_whole() -> None:
    plant = Plant(pool="a", demand=flat(1.0), rate=1.0, size=8)
    assert [plant.nodes(units) for units in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_a_week_to_come_is_read_by_the_hour_of_the_week() -> None:
    week = tuple(100.0 * (1 + hour % DAY) for hour in range(WEEK))
    plant = Plant(pool="a", demand=asked(week, weekly=1.1), rate=100.0, headroom=0.0)
    later = plant.week(ahead=5 * WEEK)
    for hour in range(NOW + 5 * WEEK, NOW + 6 * WEEK):
        assert later[of_week(hour)] == plant.units(hour)
    assert max(later) > max(plant.week())


def test_another_kind_of_node_is_counted_by_what_one_of_them_does() -> None:
    plant = Plant(pool="a", demand=flat(3500.0), rate=500.0, headroom=0.3, size=2)
    assert nodes_of(plant, Alternative(name="same", share=1.0), 3500.0) == 5
    assert nodes_of(plant, Alternative(name="half", share=0.5), 3500.0) == 10
    assert nodes_of(plant, Alternative(name="huge", share=50.0), 3500.0) == 1


# -- when a limit binds ----------------------------------------------------------------------------------


def counted(week: tuple[float, ...], weekly: Fraction, each: int, bound: int) -> int | None:
    """The first hour in which more than `bound` units of `each` are needed, in whole numbers: a week at a
    time, every hour of the week for itself."""
    for hour in range(NOW, NOW + HORIZON):
        past = Fraction(hour - NOW, WEEK)
        demand = Fraction(week[of_week(hour)]) * Fraction(float(weekly) ** float(past))
        if demand > bound * each:
            return hour
    return None


@pytest.mark.parametrize("seed", range(6))
def test_the_date_is_that_of_a_brute_force_walk(seed: int) -> None:
    chance = random.Random(seed)
    week = tuple(chance.uniform(50.0, 1000.0) for _ in range(WEEK))
    weekly = chance.choice([1.003, 1.02, 1.08, 1.3])
    plant = Plant(pool="a", demand=asked(week, weekly), rate=100.0, headroom=0.0)
    for bound in (8, 11, 15, 40, 4000):
        assert hit([plant], replicas(bound)) == counted(week, Fraction(weekly), 100, bound)


def test_the_date_is_that_of_the_logarithm() -> None:
    """400 that grows by a tenth a week passes 8 units of 100 after log(2) / log(1.1) weeks."""
    plant = Plant(pool="a", demand=flat(400.0, 1.1), rate=100.0, headroom=0.0)
    weeks = math.log(2.0) / math.log(1.1)
    assert hit([plant], replicas(8)) == NOW + math.floor(weeks * WEEK) + 1


@pytest.mark.parametrize(("weekly", "first"), [(1.0, None), (0.9, None), (1.0001, None)])
def test_what_does_not_grow_never_binds(weekly: float, first: int | None) -> None:
    plant = Plant(pool="a", demand=flat(790.0, weekly), rate=100.0, headroom=0.0)
    assert hit([plant], replicas(8)) == first


def test_a_limit_that_binds_already_says_how_often() -> None:
    week = tuple(900.0 if hour < 10 else 100.0 for hour in range(WEEK))
    plant = Plant(pool="a", demand=asked(week), rate=100.0, headroom=0.0)
    (found,) = reached([plant], [replicas(8)])
    assert (found.hours, found.needs) == (10, 9.0)
    assert found.first == next(hour for hour in range(NOW, NOW + WEEK) if of_week(hour) < 10)


def test_dates_come_with_the_ends_of_what_is_likely() -> None:
    demand = asked((400.0,) * WEEK, weekly=1.05, low=0.99, high=1.2)
    (found,) = reached([Plant(pool="a", demand=demand, rate=100.0, headroom=0.0)], [replicas(8)])
    assert found.latest is None
    assert found.earliest is not None
    assert found.first is not None
    assert NOW < found.earliest < found.first


def test_pools_share_a_budget_hour_by_hour() -> None:
    """Each pool has its peak at another hour: what binds is the hour in which both together need most, and
    not the sum of their peaks."""
    day = asked(tuple(1000.0 if hour % DAY < 12 else 100.0 for hour in range(WEEK)))
    night = asked(tuple(100.0 if hour % DAY < 12 else 1000.0 for hour in range(WEEK)))
    plants = [
        Plant(pool=name, demand=demand, rate=100.0, headroom=0.0)
        for name, demand in (("a", day), ("b", night))
    ]
    budget = Limit(name="budget.nodes", bound=11, counted="nodes", each={"a": 1.0, "b": 1.0})
    (found,) = reached(plants, [budget])
    assert (found.first, found.needs) == (None, 11.0)
    (short,) = reached(
        plants, [Limit(name="budget.nodes", bound=10, counted="nodes", each={"a": 1.0, "b": 1.0})]
    )
    assert (short.first, short.hours) == (NOW, WEEK)


def test_dollars_count_whole_nodes_at_their_price() -> None:
    plant = Plant(pool="a", demand=flat(250.0), rate=100.0, headroom=0.0, size=2)
    cap = Limit(name="limits.spend_per_hour", bound=4.4, counted="usd", each={"a": 2 * 1.1})
    (found,) = reached([plant], [cap])  # two nodes of two units: 4 x 1.10, which is 4.4 in no binary
    assert (found.first, found.needs) == (None, pytest.approx(4.4))
    assert hit([plant], Limit(name="cap", bound=4.39, counted="usd", each={"a": 2 * 1.1})) == NOW


def test_binary_fractions_reach_no_limit() -> None:
    """Three times 1.10 is a hair above 3.30 in binary."""
    plant = Plant(pool="a", demand=flat(250.0), rate=100.0, headroom=0.0)
    assert 3 * 1.1 > 3.3
    assert hit([plant], Limit(name="cap", bound=3.3, counted="usd", each={"a": 1.1})) is None


def test_hot_standbys_take_nodes_and_no_units() -> None:
    plant = Plant(pool="a", demand=flat(300.0), rate=100.0, headroom=0.0, size=2, standby=2)
    (nodes,) = reached([plant], [Limit(name="n", bound=9.0, counted="nodes", each={"a": 1.0})])
    (units,) = reached([plant], [replicas(9)])
    assert (nodes.needs, units.needs) == (3.0, 3.0)  # five units in three nodes; three of them serve
    (dollars,) = reached([plant], [Limit(name="d", bound=9.0, counted="usd", each={"a": 2.5})])
    assert dollars.needs == 7.5


def test_a_quota_counts_what_each_node_takes() -> None:
    plant = Plant(pool="a", demand=flat(300.0), rate=100.0, headroom=0.0)
    quota = Limit(name="quota", bound=575.0, counted="vcpus", each={"a": 192.0})
    (found,) = reached([plant], [quota])
    assert (found.first, found.needs) == (NOW, 576.0)


def test_the_first_to_bind_comes_first() -> None:
    plant = Plant(pool="a", demand=flat(400.0, 1.1), rate=100.0, headroom=0.0)
    limits = [
        replicas(50),
        Limit(name="never", bound=1e9, counted="usd", each={"a": 1.0}),
        Limit(name="cap", bound=6.0, counted="usd", each={"a": 1.0}),
        Limit(name="nodes", bound=9, counted="nodes", each={"a": 1.0}),
    ]
    assert [one.limit.name for one in reached([plant], limits)] == ["cap", "nodes", "replicas", "never"]


def test_huge_numbers_are_counted_all_the_same() -> None:
    plant = Plant(pool="a", demand=flat(1e300, 2.0), rate=1e-3, headroom=0.5)
    assert hit([plant], replicas(10_000)) == NOW


def test_a_limit_of_another_pool_is_not_touched() -> None:
    plant = Plant(pool="a", demand=flat(1e6), rate=100.0, headroom=0.0)
    (found,) = reached([plant], [replicas(1, pool="b")])
    assert (found.first, found.needs) == (None, 0.0)


def test_no_pool_has_no_date() -> None:
    (found,) = reached([], [replicas(1)])
    assert (found.first, found.hours) == (None, 0)


# -- a schedule --------------------------------------------------------------------------------------


def test_a_schedule_holds_each_hour_of_the_week() -> None:
    chance = random.Random(3)
    for _ in range(50):
        week = [chance.randint(1, 9) for _ in range(WEEK)]
        days = schedule(week)
        for hour, units in enumerate(week):
            day = days[0] if hour < 5 * DAY else days[1]
            (stretch,) = [one for one in day if one.begin <= hour % DAY < one.end]
            assert stretch.units >= units
        for day in days:
            assert [one.begin for one in day] == [0, *(one.end for one in day[:-1])]
            assert day[-1].end == DAY
            assert all(first.units != second.units for first, second in pairwise(day))
        assert sum(week) <= scheduled(days) <= max(week) * WEEK
