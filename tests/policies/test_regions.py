"""One region that cannot be seen holds back nothing in another, and nothing is guessed of what it holds."""

from __future__ import annotations

from typing import Any

import pytest

from policies import explain, observations
from policies.actions import ActionKind, Cause, Drain, Launch, Start, Terminate
from policies.events import IntentClosed, NodeGone, NodeMissing, NodeReady, Outcome
from policies.evidence import Evidence
from policies.memory import reduce
from policies.model import (
    HealthRules,
    Instance,
    InstanceState,
    Limits,
    Market,
    NoticeKind,
    Observed,
    Offering,
    Patience,
    Placement,
    Pool,
    StandbyKind,
    StandbyRules,
    Target,
    TargetState,
)
from policies.regions import UNSEEN_FOR, Sight
from policies.value import replace
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

ON_DEMAND = Market.ON_DEMAND
SILENT_FOR = 100.0
"""Seconds since the west was last listed, where nothing else is said."""


def region_of(zone: str) -> str:
    return "west" if zone.startswith("w") else "east"


def moved(placement: Placement) -> Placement:
    return Placement(
        placement.provider,
        region_of(placement.zone),
        placement.zone,
        placement.instance_type,
        placement.market,
    )


def apart(here: Scene, *, west_at: float | None = SILENT_FOR, error: str = "503", **lists: Any) -> Any:
    """The scene with its zones in two regions: the west was last listed so long ago, None for never."""
    here.records = {n: replace(r, placement=moved(r.placement)) for n, r in here.records.items()}
    here.fields["intents"] = {
        t: i if i.placement is None else replace(i, placement=moved(i.placement))
        for t, i in here.fields.get("intents", {}).items()
    }
    here.offerings = [
        Offering(
            placement=Placement("toy", region_of(zone), zone, "gpu", market),
            price=1.0 if market is Market.SPOT else 3.0,
        )
        for market in Market
        for zone in ("e1", "e2", "w1", "w2")
    ]
    machines = [replace(i, placement=moved(i.placement)) for i in here.instances.values()]
    east = tuple(i for i in machines if i.placement.region == "east")
    west = tuple(i for i in machines if i.placement.region == "west" and west_at is not None)
    at = None if west_at is None else here.now - west_at
    here.settings["regions"] = {
        "east": Observed(value=east, at=here.now - 1.0, since=here.now - 900.0),
        "west": Observed(value=west, at=at, error=error, since=at),
        **lists,
    }
    return here


def whole(**pool: Any) -> Any:
    """Six units, three on demand: one of each market in each zone but the last."""
    here = Scene(Pool(**{"name": "p", "replicas": 6, "spot_share": 0.5, **pool}), serial=20)
    for market, zones in ((Market.SPOT, ("e1", "e2", "w1")), (ON_DEMAND, ("e1", "w1", "w2"))):
        for zone in zones:
            here.node(f"{zone}-{market}", market, zone)
    return here


def launched_in(plan: Any) -> list[str]:
    return [a.placement.region for a in plan.actions if isinstance(a, Launch)]


# -- launching ---------------------------------------------------------------------------------------------


def test_a_reclaim_elsewhere_is_replaced_elsewhere() -> None:
    here = apart(whole())
    here.notice("e1-spot")
    plan = here.plan()
    assert set(launched_in(plan)) == {"east"}
    assert "west is passed over: the last complete list of west is 100 s old" in plan.notes


def test_nodes_of_a_silent_region_count_as_long_as_their_engines_answer() -> None:
    plan = apart(whole()).plan()
    assert plan.actions == ()


def test_a_region_that_was_not_listed_since_the_start_counts_by_the_journal() -> None:
    """After a restart nothing is launched a second time, and what goes elsewhere is replaced there."""
    here = apart(whole(), west_at=None)
    assert here.plan().actions == ()
    here.notice("e2-spot")
    assert set(launched_in(here.plan())) == {"east"}


def test_nodes_of_a_silent_region_that_fall_silent_are_replaced_as_far_as_there_is_room() -> None:
    """They may run, and cannot be ended: they take up room. So many would make one doubt this host, but it
    reaches everything else."""
    here = whole(limits=Limits(surge=2))
    for node in ("w1-spot", "w1-on-demand", "w2-on-demand"):
        market = Market.SPOT if node == "w1-spot" else ON_DEMAND
        here.node(node, market, node[:2], silent_for=100.0)
    plan = apart(here).plan()
    assert launched_in(plan) == ["east"] * 2
    assert not here.fleet.suspect
    assert any("8 nodes live, and wanted + standby + surge is 8" in d.reason for d in plan.deferred)
    assert {d.node for d in plan.deferred if d.kind is ActionKind.DRAIN} == {
        "w1-spot",
        "w1-on-demand",
        "w2-on-demand",
    }


def test_nodes_that_a_balancer_reaches_in_a_silent_region_are_not_replaced() -> None:
    here = whole().node("w1-spot", Market.SPOT, "w1", silent_for=100.0, vouched=True)
    assert launched_in(apart(here).plan()) == []


def test_where_no_region_is_open_nothing_is_launched() -> None:
    here = apart(whole())
    here.notice("e1-spot")
    east = here.settings["regions"]["east"]
    here.settings["regions"]["east"] = replace(east, at=here.now - 60.0, error="503")
    plan = here.plan()
    assert launched_in(plan) == []
    assert any(d.kind is ActionKind.LAUNCH and d.reason.endswith("is 60 s old") for d in plan.deferred)


@pytest.mark.parametrize(("error", "region"), [("503", "east"), ("", "west")])
def test_a_region_whose_newest_look_failed_is_taken_last(error: str, region: str) -> None:
    """Before its list is old: what is launched there may have to be waited for."""
    here = apart(Scene(Pool(name="p", replicas=1, spot_share=0.0), serial=1), west_at=5.0, error=error)
    here.offerings = [
        replace(o, price=o.price * (1.2 if o.placement.region == "east" else 1.0)) for o in here.offerings
    ]
    assert launched_in(here.plan()) == [region]


def test_a_standby_in_a_silent_region_is_not_started() -> None:
    here = whole(standby=StandbyRules(stopped=1))
    here.node(
        "sb", ON_DEMAND, "w2", ready=False, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED,
        probed=False,
    )  # fmt: skip
    here.notice("e1-on-demand", kind=NoticeKind.MAINTENANCE)
    plan = apart(here).plan()
    assert of_kind(plan, Start) == []
    assert set(launched_in(plan)) == {"east"}


@pytest.mark.parametrize(("error", "counts"), [("", True), ("503", False)])
def test_what_is_on_its_way_counts_until_the_first_look_has_ended(error: str, *, counts: bool) -> None:
    """After a restart one region answers before the other: what was launched there is not launched again."""
    here = whole()
    for known in (here.records, here.instances, here.held, here.shown):
        del known["w1-on-demand"]
    place = Placement("toy", "west", "w1", "gpu", ON_DEMAND)
    here.launching("p/7/7", ON_DEMAND, ago=20.0, placement=place, landed=True, unanswered=True, attempts=1)
    here = apart(here, west_at=None, error=error)
    assert launched_in(here.plan()) == ([] if counts else ["east"])


def test_a_first_look_that_hangs_holds_back_nothing_elsewhere() -> None:
    """What is missing after a restart goes where a list has answered, though the west is cheaper."""
    here = apart(whole(), west_at=None, error="")
    here.offerings = [
        replace(o, price=o.price * (1.5 if o.placement.region == "east" else 1.0)) for o in here.offerings
    ]
    here.notice("e1-spot")
    plan = here.plan()
    assert set(launched_in(plan)) == {"east"}
    assert not any(d.kind is ActionKind.LAUNCH for d in plan.deferred)


# -- what is on its way there ------------------------------------------------------------------------------


def test_an_open_launch_in_a_silent_region_is_neither_asked_again_nor_waited_for() -> None:
    here = whole()
    del here.records["e1-spot"], here.instances["e1-spot"], here.held["e1-spot"], here.shown["e1-spot"]
    here.launching("p/7/7", ago=70.0, landed=True, unanswered=True, attempts=3)
    here.fields["intents"]["p/7/7"] = replace(
        here.fields["intents"]["p/7/7"], placement=Placement("toy", "west", "w2", "gpu", Market.SPOT)
    )
    plan = apart(here).plan()
    assert set(launched_in(plan)) == {"east"}
    assert plan.actions[0].token != "p/7/7"
    assert here.fleet.living == 6  # it may be there, and costs: the room for it is kept


def test_an_open_launch_in_a_silent_region_takes_up_the_room_that_it_may_need() -> None:
    here = whole(limits=Limits(surge=0))
    del here.records["e1-spot"], here.instances["e1-spot"], here.held["e1-spot"], here.shown["e1-spot"]
    here.launching("p/7/7", landed=True)
    here.fields["intents"]["p/7/7"] = replace(
        here.fields["intents"]["p/7/7"], placement=Placement("toy", "west", "w2", "gpu", Market.SPOT)
    )
    plan = apart(here).plan()
    assert launched_in(plan) == []
    assert any("wanted + standby + surge is 6" in d.reason for d in plan.deferred)


@pytest.mark.parametrize(("landed", "closed"), [(False, True), (True, False)])
def test_a_launch_that_surely_did_nothing_there_is_withdrawn(*, landed: bool, closed: bool) -> None:
    here = whole().launching("p/7/7", unanswered=True, landed=landed)
    here.fields["intents"]["p/7/7"] = replace(
        here.fields["intents"]["p/7/7"], placement=Placement("toy", "west", "w2", "gpu", Market.SPOT)
    )
    here = apart(here)
    found = observations.changes(here.pool, here.world, here.memory)
    said = [e for e in found if isinstance(e, IntentClosed)]
    assert [e.outcome for e in said] == [Outcome.WITHDRAWN] * closed
    after = reduce(here.memory, *found)
    assert ("p/7/7" in after.intents) is not closed
    assert after.refusals == {}  # its region said nothing of capacity


def unanswered(*, ago: float, **intent: Any) -> Any:
    """Both regions are listed, and one unit is missing, whose launch in the west is not answered."""
    here = whole()
    for known in (here.records, here.instances, here.held, here.shown):
        del known["e1-on-demand"]
    asked = {"landed": True, "unanswered": True, "attempts": 4, "asked_at": here.now - 9.0, **intent}
    place = Placement("toy", "west", "w1", "gpu", ON_DEMAND)
    here.launching("p/7/7", ON_DEMAND, ago=ago, placement=place, **asked)
    return apart(here, west_at=1.0, error="")


@pytest.mark.parametrize(
    ("ago", "intent", "elsewhere"),
    [
        (60.0, {}, True),
        (59.0, {}, False),
        (60.0, {"unanswered": False}, True),  # it is being asked again
        (600.0, {"unanswered": False, "attempts": 1}, False),  # the first call is under way
        (600.0, {"accepted_at": 9_500.0}, False),  # it was taken: a list will show it
    ],
)
def test_a_region_that_lists_and_answers_no_launch_is_not_waited_for(
    ago: float, intent: Any, *, elsewhere: bool
) -> None:
    here = unanswered(ago=ago, **intent)
    plan = here.plan()
    new = [a.placement.region for a in plan.actions if isinstance(a, Launch) and a.token != "p/7/7"]
    assert new == ["east"] * elsewhere
    if elsewhere:
        assert "west is passed over: a launch there has had no answer for 60 s" in plan.notes
        said = explain.pool_sentences(here.fleet, here.world, here.memory)
        assert "west gets no new nodes: a launch there has had no answer for 60 s." in said
        assert here.fleet.living == 6  # it may be there: the room for it is kept
        assert not any(n.out_of_sight for n in here.fleet.nodes)  # its list shows what boots there


def test_a_region_that_answers_no_launch_is_passed_over_whatever_else_is_under_way() -> None:
    here = unanswered(ago=60.0)
    (launch,) = here.fields["intents"].items()
    here.fields["intents"] = {}
    here.asked("e2-spot", ActionKind.TERMINATE)
    here.fields["intents"] |= dict([launch])
    assert "west is passed over: a launch there has had no answer for 60 s" in here.plan().notes


def test_where_no_region_answers_a_launch_it_is_waited_for() -> None:
    here = unanswered(ago=70.0)
    east = replace(
        here.fields["intents"]["p/7/7"],
        token="p/7/8",
        placement=Placement("toy", "east", "e1", "gpu", ON_DEMAND),
    )
    here.fields["intents"]["p/7/8"] = east
    assert {a.token for a in here.plan().actions if isinstance(a, Launch)} <= {"p/7/7", "p/7/8"}


def test_a_daemon_that_was_away_asks_before_it_looks_elsewhere() -> None:
    here = unanswered(ago=600.0)
    here.settings["awake_since"] = here.now - 10.0
    assert {a.token for a in here.plan().actions if isinstance(a, Launch)} == {"p/7/7"}


def test_one_that_boots_out_of_sight_is_not_waited_for() -> None:
    here = whole()
    here.node("w1-spot", Market.SPOT, "w1", ready=False, probed=False, age=20.0, address="")
    here.instances["w1-spot"] = replace(here.instances["w1-spot"], address="", state=InstanceState.PENDING)
    here = apart(here)
    assert set(launched_in(here.plan())) == {"east"}
    assert "out of sight" in here.fleet.by_id["w1-spot"].conditions
    assert here.fleet.living == 6


def test_one_that_loads_in_a_silent_region_and_can_be_reached_is_waited_for() -> None:
    here = whole().node("w1-on-demand", ON_DEMAND, "w1", ready=False, age=20.0)
    assert launched_in(apart(here).plan()) == []


def test_it_becomes_ready_though_no_list_shows_it() -> None:
    here = whole()
    here.node("w1-spot", Market.SPOT, "w1", ready_at=None)
    here = apart(here)
    assert NodeReady(at=here.now, node="w1-spot", address="w1-spot:1") in observations.changes(
        here.pool, here.world, here.memory
    )


# -- ending ------------------------------------------------------------------------------------------------


def test_a_healthy_region_goes_on_ending() -> None:
    """The youngest would go first, and is in the silent region."""
    here = whole().node("w2-new", ON_DEMAND, "w2", age=100.0).node("e2-old", ON_DEMAND, "e2", age=500.0)
    plan = apart(here).plan()
    assert [(a.node, a.cause) for a in of_kind(plan, Drain)] == [("e2-old", Cause.RETURN)]
    plan = apart(here, west_at=1.0, error="").plan()
    assert [(a.node, a.cause) for a in of_kind(plan, Drain)] == [("w2-new", Cause.RETURN)]


def test_a_drained_node_ends_where_its_region_is_seen_only() -> None:
    here = whole()
    for node, zone in (("e2-old", "e2"), ("w2-old", "w2")):
        here.node(node, ON_DEMAND, zone, idle_since=here.now - 10.0, serving=False)
        here.drain(node, Cause.RETURN, since=20.0)
    plan = apart(here).plan()
    assert [a.node for a in of_kind(plan, Terminate)] == ["e2-old"]
    assert [(d.node, d.reason) for d in plan.deferred if d.kind is ActionKind.TERMINATE] == [
        ("w2-old", "the last complete list of west is 100 s old")
    ]


def test_a_noticed_node_drains_in_a_silent_region_as_well() -> None:
    here = whole()
    here.notice("w1-spot")
    plan = apart(here).plan()
    assert [a.node for a in of_kind(plan, Drain)] == ["w1-spot"]
    assert set(launched_in(plan)) == {"east"}


def test_a_sick_node_is_replaced_where_its_region_is_seen_though_another_waits() -> None:
    here = whole(health=HealthRules(max_unhealthy=0.1))
    here.node("w1-spot", Market.SPOT, "w1", silent_for=300.0).node(
        "e1-spot", Market.SPOT, "e1", silent_for=90.0
    )
    plan = apart(here).plan()
    assert [a.node for a in plan.actions if isinstance(a, Drain)] == ["e1-spot"]


# -- lists -------------------------------------------------------------------------------------------------


def test_a_list_says_nothing_of_another_region() -> None:
    """The east's list lacks the west's nodes, and they are not missing."""
    assert observations.changes(*_known(apart(whole()))) == ()


@pytest.mark.parametrize(("since", "gone"), [(16.0, True), (14.0, False)])
def test_what_a_region_lacks_at_its_return_is_gone_after_the_grace_time(since: float, *, gone: bool) -> None:
    here = whole()
    lost = here.node("w1-spot", Market.SPOT, "w1", listed=False, silent_for=60.0)
    del lost.instances["w1-spot"]
    lost.records["w1-spot"] = replace(lost.records["w1-spot"], missing_since=here.now - since)
    west = Observed(value=(), at=here.now, since=here.now - since)
    apart(lost, west_at=0.0, error="")
    west = replace(west, value=here.settings["regions"]["west"].value)
    here.settings["regions"]["west"] = west
    found = observations.changes(*_known(here))
    assert [e.node for e in found if isinstance(e, NodeGone)] == ["w1-spot"] * gone


def test_a_list_that_lacks_most_of_its_own_region_is_doubted() -> None:
    """Three of nine are few of a pool, and all of a region."""
    here = Scene(Pool(name="p", replicas=9), serial=1).nodes(6)
    for number in range(3):
        here.node(f"w{number}", Market.SPOT, f"w{number}", listed=False, silent_for=60.0,
                  missing_since=9_950.0)  # fmt: skip
    apart(here, west_at=1.0, error="")
    assert [e for e in observations.changes(*_known(here)) if isinstance(e, NodeGone)] == []


def _known(here: Scene) -> tuple[Any, Any, Any]:
    return here.pool, here.world, here.memory


# -- what nobody knows -------------------------------------------------------------------------------------


def test_a_journal_that_launched_nothing_does_not_tell_what_a_silent_region_holds() -> None:
    """It may be new because it was lost: the pool may be whole in the west."""
    here = Scene(Pool(name="p", replicas=2), whole_at=None)
    here = apart(here, west_at=None)
    plan = here.plan()
    assert plan.actions == ()
    why = "west has not been seen whole yet, and the journal is too new to tell which nodes are there"
    assert {d.reason for d in plan.deferred} == {why}
    assert f"{why}: nothing is launched or ended anywhere for 120 s more." in explain.pool_sentences(
        here.fleet, here.world, here.memory
    )


def new_pool(*, failing_for: float | None, **fields: Any) -> Any:
    """A journal without anything, and a west that was never listed."""
    here = apart(Scene(Pool(name="p", replicas=2), whole_at=None), west_at=None, **fields)
    since = None if failing_for is None else here.now - failing_for
    here.settings["regions"]["west"] = Observed(value=(), error="503", failing_since=since)
    return here


@pytest.mark.parametrize(
    ("failing_for", "awake_for", "launches"),
    [(UNSEEN_FOR, 900.0, 2), (UNSEEN_FOR - 1.0, 900.0, 0), (None, 900.0, 0), (UNSEEN_FOR, 60.0, 0)],
    ids=["for long", "not long", "first look under way", "hung meanwhile"],
)
def test_a_new_pool_begins_without_a_region_that_has_not_answered_for_long(
    failing_for: float | None, awake_for: float, launches: int
) -> None:
    """Who starts a pool while one of its regions is down gets it in the others, two minutes late."""
    here = new_pool(failing_for=failing_for)
    east = here.settings["regions"]["east"]
    here.settings["awake_since"] = here.now - awake_for
    assert east.at >= here.settings["awake_since"]
    assert launched_in(here.plan()) == ["east"] * launches


@pytest.mark.parametrize(
    ("held", "waits"),
    [
        (TargetState.HEALTHY, "while gw sends requests to nodes that nobody knows"),
        (TargetState.INITIAL, "while gw sends requests to nodes that nobody knows"),
        (TargetState.UNHEALTHY, ""),
        (TargetState.UNUSED, ""),
        ("unread", "until gw was read once"),
    ],
)
def test_a_lost_journal_waits_while_requests_may_be_served_from_there(held: Any, waits: str) -> None:
    here = new_pool(failing_for=900.0)
    shown = Observed(value=(), error="503")
    if held != "unread":
        shown = Observed(value=(Target(id="x-1", address="x-1:1", state=held),), at=here.now)
    here.settings["balancers"] = {"gw": shown}
    plan = here.plan()
    assert here.fleet.sight.waits == waits
    assert launched_in(plan) == ["east"] * (0 if waits else 2)


@pytest.mark.parametrize("known", ["a launch", "a node there", "a list since"])
def test_a_journal_that_did_tells(known: str) -> None:
    here = Scene(Pool(name="p", replicas=2, spot_share=0.0), whole_at=None, serial=int(known == "a launch"))
    if known == "a node there":
        here.node("w1", ON_DEMAND, "w1")
    here = apart(here, west_at=500.0 if known == "a list since" else None)
    assert set(launched_in(here.plan())) == {"east"}


def test_targets_that_nobody_knows_stay_until_every_region_was_seen() -> None:
    """With an old journal they may be the nodes of the region that cannot be listed."""
    here = apart(whole(), west_at=None)
    for node, state in (("x-1", TargetState.HEALTHY), ("x-2", TargetState.UNHEALTHY)):
        here.shown[node] = Target(id=node, address=f"{node}:1", state=state)
    targets = {t.id for t in here.plan().targets}
    assert "x-1" in targets
    assert "x-2" not in targets  # dead, and as likely one that has ended elsewhere
    here.settings["regions"]["west"] = Observed(value=(), at=here.now - 500.0, error="503")
    assert "x-1" not in {t.id for t in here.plan().targets}


# -- a region that is not configured any more --------------------------------------------------------------


def unconfigured(here: Scene) -> Any:
    del here.settings["regions"]["west"]
    return here


def test_nodes_of_a_region_that_was_taken_out_serve_on() -> None:
    here = unconfigured(apart(whole()))
    assert here.plan().actions == ()
    assert observations.changes(*_known(here)) == ()
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert "west is not configured any more: its nodes serve on, and nobody can end them from here." in said


def test_they_are_gone_once_they_have_been_silent_for_long() -> None:
    here = whole(patience=Patience(vanish_grace=15.0))
    here.node("w1-spot", Market.SPOT, "w1", silent_for=200.0)
    here = unconfigured(apart(here))
    assert observations.changes(*_known(here)) == (NodeMissing(at=here.now, node="w1-spot"),)
    for since, gone in ((149.0, False), (150.0, True)):
        here.records["w1-spot"] = replace(here.records["w1-spot"], missing_since=here.now - since)
        assert [isinstance(e, NodeGone) for e in observations.changes(*_known(here))] == [True] * gone


# -- where to ----------------------------------------------------------------------------------------------


def test_equal_prices_are_spread_over_regions() -> None:
    here = apart(Scene(Pool(name="p", replicas=8, spot_share=0.5), whole_at=None), west_at=1.0, error="")
    launched = [a.placement for a in here.plan().actions if isinstance(a, Launch)]
    assert len(launched) == 8
    for market in Market:
        assert sorted(p.zone for p in launched if p.market is market) == ["e1", "e2", "w1", "w2"]
    first = [p.region for p in launched[:4]]
    assert sorted(first) == ["east", "east", "west", "west"]


def test_a_region_that_costs_much_more_gets_little() -> None:
    here = apart(Scene(Pool(name="p", replicas=4, spot_share=0.0), whole_at=None), west_at=1.0, error="")
    here.offerings = [
        replace(o, price=o.price * (3.0 if o.placement.region == "west" else 1.0)) for o in here.offerings
    ]
    assert launched_in(here.plan()) == ["east"] * 4


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "region", "says"),
    [
        ({"": Observed(value=())}, "r", "the cloud has not been seen whole yet"),
        ({"": Observed(value=(), at=60.0)}, "r", "the last complete list of instances is 40 s old"),
        ({"r": Observed(value=())}, "r", "r has not been seen whole yet"),
        ({"r": Observed(value=(), at=70.0)}, "r", ""),  # just fresh enough
        ({"r": Observed(value=(), at=60.0)}, "r", "the last complete list of r is 40 s old"),
        ({"r": Observed(value=(), at=99.0)}, "s", "s is not a region of the configuration"),
        ({"r": Observed(value=(), at=99.0), "s": Observed(value=(), at=99.0)}, "s", ""),
    ],
)
def test_a_region_says_why_it_is_hidden(lists: Any, region: str, says: str) -> None:
    here = Scene()
    here.now, here.settings["regions"] = 100.0, lists
    assert Sight(Evidence(here.pool, here.world, here.memory), here.world).hidden(region) == says


def test_machines_of_all_regions_are_one_view() -> None:
    here = apart(whole())
    assert {i.id for i in here.world.instances} == set(here.records)
    assert all(isinstance(i, Instance) for i in replace(here.world, now=1.0).instances)
