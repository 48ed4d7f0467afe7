"""How many nodes of which market are bought, and when not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies import bill, mix
from policies.actions import ActionKind, Cause, Launch, Start, Undrain
from policies.model import (
    InstanceState,
    Limits,
    Market,
    Observed,
    Offering,
    Pool,
    ReturnRules,
    StandbyKind,
    StandbyRules,
)
from policies.records import OperatorRequest, Pause, Refusal
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind, place

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND


@pytest.mark.parametrize(
    ("replicas", "share", "spot", "floor"),
    [
        (10, 0.7, 7, 3),
        (4, 0.7, 2, 2),
        (1, 0.7, 0, 1),
        (2, 0.7, 1, 1),
        (3, 0.7, 2, 1),
        (100, 0.7, 70, 30),
        (1000, 0.9, 900, 100),
        (10, 0.0, 0, 10),
        (10, 1.0, 10, 0),
        (7, 0.99, 6, 1),
        (10, 0.1, 1, 9),
    ],
)
def test_the_floor_is_the_on_demand_share_rounded_up(
    replicas: int, share: float, spot: int, floor: int
) -> None:
    pool = Pool(name="p", replicas=replicas, spot_share=share)
    assert (pool.spot_wanted, pool.on_demand_floor) == (spot, floor)


@pytest.mark.parametrize(
    ("ready", "coming", "whole", "cover"),
    [(7, 0, True, 0), (6, 1, True, 1), (0, 0, True, 7), (9, 0, True, 0), (0, 7, False, 0), (2, 3, False, 2)],
)
def test_cover_stands_in_for_spot_that_is_not_ready(ready: int, coming: int, whole: bool, cover: int) -> None:
    pool = Pool(name="p", replicas=10, standby=StandbyRules(hot=1))
    found = mix.wanted(pool, spot_ready=ready, spot_coming=coming, whole=whole)
    assert (found.spot, found.floor, found.hot, found.cover) == (7, 3, 1, cover)
    assert found.on_demand == 4 + cover


def bought(plan: Any) -> list[str]:
    """Markets of the launches, in order."""
    return [str(a.placement.market) for a in plan.actions if isinstance(a, Launch)]


def test_an_empty_pool_buys_the_mix_floor_first() -> None:
    plan = Scene(whole_at=None).plan()
    assert bought(plan) == ["on-demand", "on-demand", "spot", "spot"]
    tokens = [a.token for a in plan.actions if isinstance(a, Launch)]
    assert tokens == ["p/7/1", "p/7/2", "p/7/3", "p/7/4"]


def test_open_launches_and_starting_nodes_count() -> None:
    here = Scene(whole_at=None)
    here.node("o0", ON_DEMAND, ready=False, age=10.0)
    here.launching("p/7/8", ON_DEMAND).launching("p/7/9", SPOT)
    assert bought(here.plan()) == ["spot"]


def test_a_lost_spot_node_is_covered_at_once_and_replaced_on_spot() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(6).nodes(3, ON_DEMAND)
    assert bought(here.plan()) == ["on-demand", "spot"]


def test_spot_that_is_coming_needs_no_second_launch_but_cover() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(6).nodes(3, ON_DEMAND).launching("x", SPOT)
    assert bought(here.plan()) == ["on-demand"]


def test_a_node_that_is_silent_for_a_moment_is_not_covered() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(6).nodes(3, ON_DEMAND).node("s6", silent_for=8.0)
    assert not here.fleet.by_id["s6"].ready
    assert bought(here.plan()) == []


def test_a_launch_that_nobody_can_confirm_counts_no_more_after_a_boot_time_out() -> None:
    here = Scene().nodes(2).nodes(1, ON_DEMAND)
    here.launching("lost", ON_DEMAND, ago=899.0, asked_at=here.now - 1.0, unanswered=True, attempts=20)
    assert bought(here.plan()) == []
    here.launching("lost", ON_DEMAND, ago=901.0, asked_at=here.now - 1.0, unanswered=True, attempts=20)
    assert bought(here.plan()) == ["on-demand"]


def test_unanswered_launches_are_asked_again_with_their_token() -> None:
    here = Scene(whole_at=None).nodes(1).nodes(2, ON_DEMAND)
    here.launching("p/1/3", SPOT, ago=3.0, unanswered=True, replaces="gone", attempts=2)
    (again,) = of_kind(here.plan(), Launch)
    assert (again.token, again.replaces, again.cause) == ("p/1/3", "gone", Cause.SHORT)
    assert again.reason == "missing (asked again with the same token)"
    here.launching("p/1/3", SPOT, ago=3.0, unanswered=True, attempts=3)
    assert of_kind(here.plan(), Launch) == []  # four seconds after the third try
    here.launching("p/1/3", SPOT, ago=59.0, reason=again.reason)
    assert of_kind(here.plan(), Launch) == []
    here.launching("p/1/3", SPOT, ago=60.0, reason=again.reason)
    (third,) = of_kind(here.plan(), Launch)
    assert third.reason == again.reason


def test_launches_are_asked_again_as_far_as_there_is_room_for_them() -> None:
    """What they were for may be over: notices were cancelled, and the nodes stay after all."""
    here = Scene(Pool(name="p", replicas=4, limits=Limits(surge=2))).nodes(2).nodes(2, ON_DEMAND)
    for token in ("p/7/1", "p/7/2", "p/7/3"):
        here.launching(token, SPOT, ago=99.0, unanswered=True)
    plan = here.plan()
    assert [a.token for a in of_kind(plan, Launch)] == ["p/7/1", "p/7/2"]
    (held,) = [d for d in plan.deferred if d.kind is ActionKind.LAUNCH]
    assert held.reason == "6 nodes live, and wanted + standby + surge is 6"
    here.launching("p/7/3", SPOT, ago=20.0, accepted_at=here.now - 19.0)  # this one is there
    assert [a.token for a in of_kind(here.plan(), Launch)] == ["p/7/1"]
    here.node("s1", silent_for=60.0)
    assert [a.token for a in of_kind(here.plan(), Launch)][:2] == ["p/7/1", "p/7/2"]


def test_a_node_that_is_put_back_takes_the_room_of_a_launch() -> None:
    here = Scene(Pool(name="p", replicas=4, limits=Limits(surge=1))).nodes(2).nodes(2, ON_DEMAND)
    here.drain("s1", Cause.NOTICE).launching("p/7/1", SPOT, ago=99.0).launching("p/7/2", SPOT, ago=99.0)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["s1"]
    assert [a.token for a in of_kind(plan, Launch)] == ["p/7/1"]


def test_a_launch_intent_without_its_cause_is_asked_again_all_the_same() -> None:
    here = Scene(whole_at=None).nodes(1).nodes(2, ON_DEMAND)
    here.launching("t", SPOT, ago=99.0, cause=None)
    assert [a.token for a in of_kind(here.plan(), Launch)] == ["t"]


def test_on_demand_that_is_refused_lets_spot_stand_in_and_no_more_than_are_missing() -> None:
    here = Scene().nodes(2)
    here.offerings = [o for o in here.offerings if o.placement.market is SPOT]
    plan = here.plan()
    assert bought(plan) == ["spot", "spot"]
    assert any("no on-demand offering is for sale" in note for note in plan.notes)
    here.launching("a", SPOT).launching("b", SPOT)
    assert bought(here.plan()) == []
    here.fields["intents"] = {}
    here.nodes(1).launching("a", SPOT)  # one of the two spot nodes is lost, one is coming
    del here.records["s1"]
    assert bought(here.plan()) == ["spot", "spot"]


def test_coming_spot_is_not_doubled_while_on_demand_is_refused() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(5).nodes(3, ON_DEMAND)
    here.offerings = [o for o in here.offerings if o.placement.market is SPOT]
    here.launching("a", SPOT).launching("b", SPOT)
    assert bought(here.plan()) == []


def test_no_spot_stands_in_where_none_is_wanted() -> None:
    here = Scene(Pool(name="p", replicas=4, spot_share=0.0)).nodes(3, ON_DEMAND)
    here.offerings = [o for o in here.offerings if o.placement.market is SPOT]
    assert bought(here.plan()) == []


def test_a_node_that_drains_to_save_money_comes_back_before_anything_is_bought() -> None:
    here = Scene().nodes(1).nodes(2, ON_DEMAND).node("o2", ON_DEMAND).drain("o2", Cause.RETURN)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["o2"]
    assert bought(plan) == ["spot"]
    assert "o2" in {t.id for t in plan.targets if t.phase == "active"}


@pytest.mark.parametrize("cause", [Cause.NOTICE, Cause.OPERATOR, Cause.SICK])
def test_other_drains_are_not_taken_back_to_save_a_launch(cause: Cause) -> None:
    here = Scene().nodes(1).nodes(2, ON_DEMAND).node("o2", ON_DEMAND)
    if cause is Cause.NOTICE:
        here.notice("o2", kind="maintenance")
    if cause is Cause.OPERATOR:
        request = OperatorRequest(since=here.now, budget=9.0, reason="asked")
        here.records["o2"] = replace(here.records["o2"], operator=request)
    here.drain("o2", cause)
    if cause is Cause.SICK:
        here.engines["o2"] = replace(here.engines["o2"], ok=False, failing_since=here.now - 50.0)
    assert of_kind(here.plan(), Undrain) == []


# -- limits --------------------------------------------------------------------------------------------


def test_the_surge_limit_holds_back_what_is_left() -> None:
    here = Scene(Pool(name="p", replicas=10, limits=Limits(surge=0))).nodes(9, price=1.0).nodes(1, ON_DEMAND)
    plan = here.plan()
    assert bought(plan) == []
    assert {d.reason for d in plan.deferred} == {"10 nodes live, and wanted + standby + surge is 10"}
    assert len(plan.deferred) == len(set(plan.deferred))


def test_the_launch_rate_holds_back_what_is_left() -> None:
    here = Scene(Pool(name="p", replicas=10, limits=Limits(launches_per_minute=5)))
    here.fields["launches"] = tuple(here.now - age for age in (70.0, 50.0, 1.0))
    plan = here.plan()
    assert len(bought(plan)) == 3
    assert plan.deferred[0].reason == "5 launches in the last minute, the limit is 5"


def test_the_spend_cap_counts_what_bills_and_what_is_coming() -> None:
    pool = Pool(name="p", replicas=10, limits=Limits(spend_per_hour=10.0))
    here = Scene(pool).nodes(1, ON_DEMAND).nodes(2)
    here.launching("x", SPOT)
    here.node("gone soon", SPOT).drain("gone soon", Cause.EXCESS)  # it bills until it is gone
    plan = here.plan()
    assert bought(plan) == ["on-demand"]  # 3 + 2 + 1 + 1 + 3 = 10
    assert "the spend cap of 10.00 USD/h leaves 0.00" in plan.deferred[0].reason


def test_a_standby_that_starts_counts_against_the_cap() -> None:
    pool = Pool(name="p", replicas=2, limits=Limits(spend_per_hour=6.0), standby=StandbyRules(stopped=1))
    here = Scene(pool).nodes(1).nodes(1, ON_DEMAND)
    here.notice("s0")  # bills until it is gone: 1 + 3
    here.node(
        "sb", ON_DEMAND, ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED, probed=False
    )
    plan = here.plan()
    assert of_kind(plan, Start) == []
    assert any(d.kind is ActionKind.START and "spend cap" in d.reason for d in plan.deferred)


def test_the_cap_that_is_proposed_covers_the_loss_of_all_spot() -> None:
    """Seven on spot at 1 bill until they are gone, beside ten on demand at 3."""
    prices = bill.Prices(on_demand=3.0, spot=1.0, dearest=3.0, dearest_spot=1.0)
    bare = Pool(name="p", replicas=10, limits=Limits(surge=0))
    proposed = bill.proposed_cap(bare, prices)
    assert (bill.ceiling(bare, prices), proposed) == (30.0, 37.0)
    for cap, covered in ((30.0, 4), (proposed, 7)):
        pool = replace(bare, limits=replace(bare.limits, spend_per_hour=cap))
        here = Scene(pool).nodes(7).nodes(3, ON_DEMAND)
        for number in range(7):
            here.notice(f"s{number}")
        assert bought(here.plan()).count("on-demand") == covered


def test_a_proposed_cap_is_in_whole_cents_and_counts_whole_nodes() -> None:
    third = bill.Prices(on_demand=1 / 3, dearest=1 / 3)
    assert bill.proposed_cap(Pool(name="p", replicas=1, spot_share=0.0), third) == 1.0
    assert bill.proposed_cap(Pool(name="p", replicas=2, spot_share=0.0), third) == 1.34
    large = Pool(name="p", replicas=8, spot_share=0.0, units={"big": 8}, limits=Limits(surge=16))
    assert bill.ceiling(large, bill.Prices(on_demand=1.0, dearest=2.0)) == 62.0  # 24 units and 7 more
    assert bill.proposed_cap(large, bill.Prices()) is None


# -- when nothing may be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fields", "says"),
    [
        ({"leading": False}, {}, "this daemon does not hold the lease"),
        ({"durable": False}, {}, "the journal cannot be written"),
        ({"regions": {"": Observed(value=())}}, {}, "the cloud has not been seen whole yet"),
        (
            {"regions": {"": Observed(value=(), at=9_960.0)}},
            {},
            "the last complete list of instances is 40 s old",
        ),
        ({}, {"pause": Pause(by="ann", reason="test", since=0.0, until=None)}, "paused by ann: test"),
    ],
)
def test_without_a_clear_view_nothing_is_bought(
    settings: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    here = Scene(**fields)
    here.settings.update(settings)
    plan = here.plan()
    assert bought(plan) == []
    assert says in {d.reason for d in plan.deferred}


def test_a_pause_that_has_run_out_holds_nothing_back() -> None:
    here = Scene(pause=Pause(by="ann", reason="test", since=0.0, until=9_999.0))
    assert bought(here.plan())


# -- where to ------------------------------------------------------------------------------------------


def test_return_launches_are_few_and_go_to_quiet_placements() -> None:
    here = Scene(Pool(name="p", replicas=10, back_to_spot=ReturnRules(hold=300.0, at_once=2)))
    here.nodes(3).nodes(7, ON_DEMAND)
    here.fields["reclaims"] = {
        place("a"): Refusal(at=here.now - 299.0),
        place("b"): Refusal(at=here.now - 301.0),
    }
    here.fields["refusals"] = {place("c"): Refusal(at=here.now - 200.0, weight=0.4)}
    plan = here.plan()
    assert [a.placement for a in plan.actions if isinstance(a, Launch)] == [place("b"), place("b")]
    here.launching("x", SPOT)
    assert bought(here.plan()) == ["spot"]
    here.launching("y", SPOT)
    assert bought(here.plan()) == []


def test_nothing_quiet_is_said_in_words() -> None:
    here = Scene().nodes(1).nodes(3, ON_DEMAND)
    here.fields["reclaims"] = {place(zone): Refusal(at=here.now - 10.0) for zone in "abc"}
    plan = here.plan()
    assert bought(plan) == []
    assert "no spot offering has been quiet for long enough" in plan.notes


def test_offerings_that_are_not_for_sale_are_not_asked_for() -> None:
    here = Scene(whole_at=None)
    here.offerings = [replace(o, available=False) for o in here.offerings]
    assert bought(here.plan()) == []


def test_a_launch_pairs_with_the_node_that_has_waited_longest() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, ON_DEMAND)
    here.notice("s2", seen_at=here.now - 5.0)
    here.notice("s1", seen_at=here.now - 9.0)
    launches = of_kind(here.plan(), Launch)
    assert [a.replaces for a in launches if a.placement.market is ON_DEMAND] == ["s1", "s2"]
    assert all(not a.replaces for a in launches if a.placement.market is SPOT)


def test_offerings_are_values() -> None:
    assert Offering(placement=place(), price=1.0).available
