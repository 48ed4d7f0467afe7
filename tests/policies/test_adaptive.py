"""The adaptive mix: its arithmetic by hand, and what it decides in plain situations."""

from dataclasses import replace

import pytest

from policies import adaptive, hazard
from policies.actions import Drain, Launch, Start, Terminate
from policies.decide import decide
from policies.events import NodeReady, NodeSeen, NoticeSeen, PoolConfigured, PoolWhole
from policies.fleet_cost import TOGETHER, FleetCost, Zone, with_zone
from policies.hazard import RunningMean, ZoneHistory
from policies.memory import Memory, reduce
from policies.model import (
    AdaptiveRules,
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Limits,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    StandbyKind,
    StandbyRules,
    World,
)

HOUR = 3600.0
NOW = 1_000_000.0
DAY = 24 * HOUR


def place(zone, market=Market.SPOT, region="r"):
    return Placement("p", region, zone, "gpu", market)


def offering(zone, price, market=Market.SPOT, region="r"):
    return Offering(placement=place(zone, market, region), price=price)


OFFERS = (
    offering("a", 0.3),
    offering("b", 0.3),
    offering("a", 1.0, Market.ON_DEMAND),
    offering("b", 1.0, Market.ON_DEMAND),
)


def zone(price=0.3, rate=0.1, down=0.01, count=0, region="r", **changes):
    return Zone(
        offering=offering("a", 0.3, region=region), price=price, rate=rate, outlook=rate, down=down,
        down_later=down, whole=0.5, open=True, count=count, present=count, working=count, **changes,
    )  # fmt: skip


class Fleet:
    """Nodes put together by hand: memory and the world that shows them."""

    def __init__(self, replicas=4, **changes):
        self.pool = Pool(
            name="p",
            replicas=replicas,
            spot_share=1.0,
            adaptive=AdaptiveRules(),
            limits=Limits(surge=replicas),
        )
        self.pool = replace(self.pool, **changes)
        self.memory = reduce(Memory(epoch=1), PoolConfigured(at=0.0, replicas=replicas), PoolWhole(at=1.0))
        self.instances, self.engines = [], {}

    def add(self, node, where, *, since=DAY, stopped=False):
        at = NOW - since
        state = InstanceState.STOPPED if stopped else InstanceState.RUNNING
        standby = StandbyKind.STOPPED if stopped else None
        self.memory = reduce(
            self.memory,
            NodeSeen(
                at=at, node=node, token=node, placement=where, launched_at=at, price=1.0, address="h:1",
                standby=standby,
            ),
        )  # fmt: skip
        self.instances.append(
            Instance(
                id=node, pool="p", token=node, placement=where, state=state, address="h:1", launched_at=at,
                price=1.0, standby=standby,
            )
        )  # fmt: skip
        if not stopped and since >= 180.0:
            self.memory = reduce(self.memory, NodeReady(at=at, node=node, address="h:1"))
            self.engines[node] = EngineReading(node=node, at=NOW, ready=True, ok=True)
        elif not stopped:
            self.engines[node] = EngineReading(node=node, at=NOW, ready=False, ok=False)
        return self

    def notice(self, node, left=120.0):
        notice = Notice(
            id=node, kind=NoticeKind.INTERRUPTION, node=node, deadline=NOW + left, source="feed",
            confidence=Confidence.CONFIRMED, seen_at=NOW,
        )  # fmt: skip
        self.memory = reduce(self.memory, NoticeSeen(at=NOW, notice=notice))
        return self

    def knows(self, where, **history):
        zones = {**self.memory.zones, where: ZoneHistory(seen_at=NOW, **history)}
        self.memory = replace(self.memory, zones=zones)
        return self

    def decide(self, offers=OFFERS):
        world = World(
            now=NOW,
            regions={"": Observed(value=tuple(self.instances), at=NOW)},
            engines=self.engines,
            offerings={"sim": Observed(value=tuple(offers), at=NOW)},
            epoch=1,
        )
        # Nothing was learned of start times: the rules hold.
        return decide(self.pool, world, replace(self.memory, timings={}))


def launches(plan, market):
    return [a for a in plan.actions if isinstance(a, Launch) and a.placement.market is market]


# -- arithmetic ------------------------------------------------------------------------------------------


def test_the_distribution_of_missing_nodes_by_hand() -> None:
    assert with_zone([1.0], 0.1, 0.5, 1) == pytest.approx([0.9, 0.1])
    assert with_zone([1.0], 0.1, 0.5, 3) == pytest.approx([0.9, 0.05, 0.0, 0.05])
    both = with_zone([0.9, 0.1], 0.1, 0.5, 1)
    assert both == pytest.approx([0.81, 0.18, 0.01])


def test_bundles_of_nodes_keep_the_mean() -> None:
    fine = with_zone(with_zone([1.0], 0.1, 0.5, 40), 0.2, 0.5, 20)
    coarse = with_zone(with_zone([1.0], 0.1, 0.5, 40, 10), 0.2, 0.5, 20, 10)
    assert sum(coarse) == pytest.approx(1.0)
    assert sum(10 * i * p for i, p in enumerate(coarse)) == pytest.approx(
        sum(i * p for i, p in enumerate(fine))
    )


def test_j_by_hand() -> None:
    costs = FleetCost(
        [zone(count=2), zone(price=0.4, count=1, region="s")], wanted=3, penalty=100.0, churn=0.0
    )
    costs.later = False
    missing = costs.missing()
    # two zones down with 0.01 each: the first takes both of its nodes or one, the second its only one
    assert sum(missing) == pytest.approx(1.0)
    short = 0.005 * 2 * 0.99 + 0.005 * 0.99 + 0.99 * 0.01 + 0.005 * 0.01 * 3 + 0.005 * 0.01 * 2
    assert costs.value(missing, 3, costs.spot_cost(), 0) == pytest.approx(1.0 + 100.0 * short)
    assert costs.value(missing, 3, costs.spot_cost(), 3) == pytest.approx(1.0 + 3.0)


def test_zones_of_a_region_fall_together_and_each_as_often_as_before() -> None:
    def missing(region, down):
        zones = [zone(count=1, down=0.01), zone(count=1, down=down, region=region)]
        costs = FleetCost(zones, wanted=2, penalty=100.0, churn=0.0)
        costs.later = False
        return costs.missing()

    for down in (0.01, 0.004, 0.0):
        apart, near = missing("s", down), missing("r", down)
        assert sum(near) == pytest.approx(1.0)
        assert near[1] + 2 * near[2] == pytest.approx(apart[1] + 2 * apart[2]) == pytest.approx(0.01 + down)
        assert apart[2] == pytest.approx(0.01 * down)
        assert near[2] == pytest.approx(TOGETHER * down, rel=0.05, abs=1e-12)


def test_the_best_number_of_on_demand_nodes_is_the_best_of_all() -> None:
    for down in (0.0, 0.004, 0.02, 0.3):
        costs = FleetCost(
            [zone(down=down, count=3), zone(down=down, count=3)], wanted=6, penalty=80.0, churn=0.1
        )
        costs.later = False
        missing, cost = costs.missing(), costs.spot_cost()
        least, count = costs.best(missing, 6, cost)
        tried = [costs.value(missing, 6, cost, o) for o in range(13)]
        assert least == pytest.approx(min(tried))
        assert tried[count] == pytest.approx(min(tried))


def test_standbys_that_start_in_time_cover_the_first_that_are_missing() -> None:
    bare = FleetCost([zone(count=2, down=0.1)], wanted=2, penalty=100.0, churn=0.0)
    covered = FleetCost([zone(count=2, down=0.1)], wanted=2, penalty=100.0, churn=0.0, free=2)
    cost = bare.spot_cost()
    assert covered.value(covered.missing(), 2, cost, 0) == pytest.approx(cost)
    assert bare.value(bare.missing(), 2, cost, 0) > cost


def test_a_higher_availability_costs_a_higher_penalty() -> None:
    values = [adaptive.penalty(a) for a in (0.99, 0.999, 0.9999, 1.0)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(adaptive.PENALTY)


def test_start_times_are_learned_and_the_gap_follows() -> None:
    fleet = Fleet()
    fleet.memory = replace(fleet.memory, timings={hazard.ON_DEMAND_START: RunningMean(mean=90.0)})
    when = times_of(fleet)
    assert when.on_demand == 90.0
    assert when.gap == 0.0
    fleet.memory = replace(fleet.memory, timings={hazard.NOTICE_LEAD: RunningMean(mean=30.0)})
    assert times_of(fleet).gap == pytest.approx(180 + adaptive.REACT - 30)
    fleet.memory = replace(fleet.memory, timings={}, preemptions=20, preemptions_without_notice=20)
    assert times_of(fleet).gap == pytest.approx(0.5 * (60 + adaptive.REACT) + 0.5 * (180 + adaptive.REACT))


def times_of(fleet):
    class Seen:
        memory = fleet.memory

    return adaptive.times(Seen, fleet.pool.adaptive)


# -- decisions -------------------------------------------------------------------------------------------


def whole(replicas=4, since=DAY):
    fleet = Fleet(replicas)
    for n in range(replicas):
        fleet.add(f"n{n}", place("ab"[n % 2]), since=since)
    return fleet


def test_an_old_fleet_of_spot_is_left_alone() -> None:
    plan = whole(since=10 * DAY).decide()
    assert not [a for a in plan.actions if isinstance(a, Launch | Drain | Terminate)]


def test_a_notice_is_answered_in_the_same_turn() -> None:
    plan = whole().notice("n0").decide()
    assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["n0"]
    found = [a for a in plan.actions if isinstance(a, Launch)]
    assert found
    assert place("a") not in {a.placement for a in found}, "its zone has announced a loss"


def test_where_on_demand_starts_sooner_it_bridges_until_spot_is_ready() -> None:
    fleet = whole().notice("n0")
    fleet.pool = replace(fleet.pool, adaptive=AdaptiveRules(spot_start=600.0, on_demand_start=90.0))
    plan = fleet.decide()
    assert len(launches(plan, Market.ON_DEMAND)) == 1
    assert len(launches(plan, Market.SPOT)) == 1


def test_a_stopped_standby_is_started_for_what_is_lost() -> None:
    fleet = whole().add("s", place("b", Market.ON_DEMAND), stopped=True).notice("n0")
    fleet.pool = replace(fleet.pool, standby=StandbyRules(stopped=1))
    plan = fleet.decide()
    assert [a.node for a in plan.actions if isinstance(a, Start)] == ["s"]


def test_with_a_backup_that_fits_into_the_notice_nothing_is_insured() -> None:
    young = whole(since=1000.0)
    insured = young.decide()
    assert [a for a in insured.actions if isinstance(a, Launch)], "young zones are insured at 180 s"
    young.pool = replace(young.pool, adaptive=AdaptiveRules(on_demand_start=90.0))
    assert not [a for a in young.decide().actions if isinstance(a, Launch)]


def test_a_zone_that_just_came_back_gets_one_scout_at_most() -> None:
    fleet = Fleet()
    for n in range(4):
        fleet.add(f"o{n}", place("a", Market.ON_DEMAND))
    fleet.knows(place("a"), bad_at=NOW - 600.0).knows(place("b"), bad_at=NOW - 600.0)
    plan = fleet.decide()
    assert not launches(plan, Market.ON_DEMAND)
    zones = [a.placement for a in launches(plan, Market.SPOT)]
    assert len(zones) == len(set(zones)), "never two into a zone before one has stood there"


@pytest.mark.parametrize(("unseen", "looks"), [(5.9, 0), (6.1, 1)])
def test_a_zone_not_looked_at_for_long_gets_a_scout_that_is_not_worth_it(unseen, looks):
    fleet = Fleet()
    for i in range(4):
        fleet.add(f"o{i}", place("a", Market.ON_DEMAND))
    zones = {}
    for name, hours in (("a", 5.0), ("b", unseen)):
        at = NOW - hours * HOUR
        zones[place(name)] = ZoneHistory(seen_at=at, bad_at=at, losses=400.0, expected=1.0)
    fleet.memory = replace(fleet.memory, zones=zones)
    found = launches(fleet.decide(), Market.SPOT)
    assert len(found) == looks
    if looks:
        assert found[0].placement == place("b")
        assert "not seen for 6 h" in found[0].reason


def test_a_zone_that_took_nodes_gets_none_for_a_while() -> None:
    fleet = Fleet().add("a1", place("a")).add("b1", place("b")).add("b2", place("b")).add("b3", place("b"))
    fleet.notice("a1")
    fleet.pool = replace(fleet.pool, replicas=8, limits=Limits(surge=8))
    plan = fleet.decide()
    assert any(isinstance(a, Launch) for a in plan.actions)
    assert {a.placement.zone for a in launches(plan, Market.SPOT)} <= {"b"}


def test_cover_is_given_back_when_spot_is_old_and_never_below_wanted() -> None:
    fleet = whole(since=10 * DAY).add("o", place("a", Market.ON_DEMAND))
    assert [a.node for a in fleet.decide().actions if isinstance(a, Drain)] == ["o"]
    short = Fleet(4)
    for n in range(3):
        short.add(f"n{n}", place("ab"[n % 2]), since=10 * DAY)
    short.add("o", place("a", Market.ON_DEMAND)).add("n3", place("b"), since=60.0)
    assert not [a for a in short.decide().actions if isinstance(a, Drain)]


def silent_for_a_moment(fleet, *nodes):
    for node in nodes:
        fleet.engines[node] = replace(fleet.engines[node], ok=False, failing_since=NOW - 1.0)
    return fleet


def test_what_fails_one_look_stays_while_the_others_are_too_few() -> None:
    """It may be serving, and the next look may show it."""
    fleet = Fleet(4).add("o", place("a", Market.ON_DEMAND)).add("n3", place("b"), since=60.0)
    for n in range(3):
        fleet.add(f"n{n}", place("ab"[n % 2]), since=10 * DAY)
    assert not [a for a in silent_for_a_moment(fleet, "o").decide().actions if isinstance(a, Drain)]


@pytest.mark.parametrize(("silent", "goes"), [(("o2",), ["o2"]), (("o1", "o2"), [])])
def test_what_fails_one_look_is_no_part_of_the_floor(silent, goes):
    fleet = whole(since=10 * DAY)
    for n in range(3):
        fleet.add(f"o{n}", place("a", Market.ON_DEMAND))
    fleet.pool = replace(fleet.pool, spot_share=0.5)
    plan = silent_for_a_moment(fleet, *silent).decide()
    assert [a.node for a in plan.actions if isinstance(a, Drain) and a.node.startswith("o")] == goes


def test_what_an_earlier_daemon_launched_is_no_surplus_boot() -> None:
    """With an old journal it may be at work: one look that failed does not tell."""
    for node, ends in (("p/1/9", True), ("p/0/9", False)):  # of this epoch, and of the one before
        fleet = whole(since=10 * DAY).add(node, place("a", Market.ON_DEMAND), since=60.0)
        assert bool([a for a in fleet.decide().actions if isinstance(a, Terminate)]) is ends


def test_the_floor_of_on_demand_is_launched_and_kept() -> None:
    fleet = whole(since=10 * DAY)
    fleet.pool = replace(fleet.pool, spot_share=0.5)
    assert len(launches(fleet.decide(), Market.ON_DEMAND)) == 2


def test_without_prices_it_says_so_and_waits() -> None:
    plan = whole().notice("n0").decide(offers=())
    assert not [a for a in plan.actions if isinstance(a, Launch)]
    assert any("no on-demand price" in note for note in plan.notes)


def test_reasons_can_be_read() -> None:
    plan = whole().notice("n0").decide()
    assert all(a.reason for a in plan.actions)
    assert any("hazard" in a.reason for a in launches(plan, Market.SPOT)) or launches(plan, Market.ON_DEMAND)


def test_the_best_number_of_on_demand_nodes_keeps_to_its_bounds() -> None:
    sure = FleetCost([zone(down=0.9, count=4)], wanted=4, penalty=100.0, churn=0.0, floor=3)
    sure.later = False
    assert sure.best(sure.missing(), 4, 0.0)[1] == 4  # of all four there may be need
    calm = FleetCost([zone(down=0.0, count=4)], wanted=4, penalty=100.0, churn=0.0, floor=3)
    calm.later = False
    assert calm.best(calm.missing(), 4, 0.0)[1] == 3  # the floor, though nothing is missing
    short = FleetCost([], wanted=4, penalty=100.0, churn=0.0)
    assert short.best(short.missing(), 0, 0.0)[1] == 4  # what is missing now is missing for sure
    cheap = FleetCost([zone(down=0.9, count=4)], wanted=4, penalty=0.5, churn=0.0)
    cheap.later = False
    assert cheap.best(cheap.missing(), 4, 0.0)[1] == 0  # a missing node costs less than a node
