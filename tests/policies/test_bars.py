"""Launches that fail for another reason than capacity: pauses, first starts, and what goes on meanwhile."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from policies import adaptive, bars, explain, observations
from policies.actions import ActionKind, Alarm, Cause, Launch, Start, Terminate
from policies.bars import PAUSE_FIRST, PAUSE_MOST, until
from policies.call_memory import ATTEMPTS, LANDS_WITHIN
from policies.events import (
    DaemonStarted,
    Event,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeGone,
    NodeReady,
    NodeSeen,
    Outcome,
    PoolConfigured,
    PoolGrew,
    Resumed,
)
from policies.memory import reduce, replay
from policies.model import (
    AdaptiveRules,
    Ending,
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    StandbyKind,
    StandbyRules,
)
from policies.records import Bar, Memory
from policies.verdict import State, change, judge
from tests.support.scene import Scene
from tests.support.toy_pools import of_kind

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
STOPPED = "this configuration has not started once: nothing more is launched until `orchestrator resume`"
ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"


def where(market: Market = SPOT, zone: str = "a", region: str = "r") -> Placement:
    return Placement("toy", region, zone, "gpu", market)


def asked(serial: int, placement: Placement, *, at: float) -> IntentOpened:
    return IntentOpened(
        at=at, token=f"p/1/{serial}", kind=ActionKind.LAUNCH, node="", placement=placement, cause=Cause.SHORT
    )


def came_back(serial: int, outcome: Outcome, *, at: float, detail: str = ROLE) -> IntentClosed:
    return IntentClosed(at=at, token=f"p/1/{serial}", outcome=outcome, detail=detail)


def launch(serial: int, outcome: Outcome, *, at: float, placement: Placement | None = None) -> list[Event]:
    there = placement if placement is not None else where()
    return [asked(serial, there, at=at), came_back(serial, outcome, at=at + 0.5)]


def seen(serial: int, *, at: float, placement: Placement | None = None) -> NodeSeen:
    return NodeSeen(
        at=at,
        node=f"i-{serial}",
        token=f"p/1/{serial}",
        placement=placement if placement is not None else where(),
        launched_at=at,
        price=1.0,
        address="",
        standby=None,
    )


def stillborn(serial: int, *, at: float, placement: Placement | None = None) -> list[Event]:
    """Launched, accepted, and ended by a fault before it was ready."""
    return [
        *launch(serial, Outcome.DONE, at=at, placement=placement),
        seen(serial, at=at + 1.0, placement=placement),
        NodeGone(
            at=at + 2.0, node=f"i-{serial}", cause=GoneCause.NEVER_STARTED, ended=True, detail="InternalError"
        ),
    ]


def bar(**more: Any) -> Bar:
    return Bar(**{"at": 9_990.0, "count": 1, "why": ROLE, **more})


def paused(*markets: Market, pool: Pool | None = None, **memory: Any) -> Any:
    """A scene in which markets of the toy region were just found not to be allowed."""
    return Scene(pool, bars={("r", m): bar() for m in markets}, **memory)


def launched(plan: Any, market: Market) -> int:
    return sum(isinstance(a, Launch) and a.placement.market is market for a in plan.actions)


# -- what outcomes leave in memory ---------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.DENIED, Outcome.MISCONFIGURED])
def test_what_is_not_allowed_leaves_a_pause_and_no_memory_of_capacity(outcome: Outcome) -> None:
    before = replay([DaemonStarted(at=0.0, epoch=1)])
    after = reduce(before, *launch(1, outcome, at=10.0))
    assert after.bars == {("r", SPOT): Bar(at=10.5, count=1, why=ROLE, places=(where(),))}
    assert after.intents == {}
    assert (after.refusals, after.quota_at, after.zones, after.boot_failures) == ({}, {}, {}, {})
    assert after.spot_lost_at is None
    assert after.preemptions == after.failed_starts == 0


def test_a_wave_that_is_denied_is_one_pause() -> None:
    wave = [asked(n, where(zone="abc"[n % 3]), at=10.0) for n in range(60)]
    wave += [came_back(n, Outcome.DENIED, at=10.0 + n / 10) for n in range(60)]
    assert replay(wave).bars[("r", SPOT)].count == 1


def test_pauses_double_up_to_an_hour() -> None:
    memory, at, lengths = Memory(), 10.0, []
    for serial in range(1, 8):
        memory = reduce(memory, *launch(serial, Outcome.DENIED, at=at))
        found = memory.bars[("r", SPOT)]
        lengths.append(until(found) - found.at)
        at = until(found)
    assert lengths == [300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0, 3600.0]
    assert (PAUSE_FIRST, PAUSE_MOST) == (300.0, 3600.0)


def test_each_market_of_each_region_has_its_own_pause() -> None:
    memory = replay(launch(1, Outcome.DENIED, at=10.0, placement=where(SPOT, region="east")))
    assert set(memory.bars) == {("east", SPOT)}


def test_throttling_uses_up_no_attempt() -> None:
    memory = replay([asked(1, where(), at=10.0)])
    for n in range(50):
        memory = reduce(memory, came_back(1, Outcome.THROTTLED, at=11.0 + n), asked(1, where(), at=11.5 + n))
    for n in range(ATTEMPTS - 1):
        memory = reduce(memory, came_back(1, Outcome.FAILED, at=70.0 + n), asked(1, where(), at=70.5 + n))
    assert set(memory.intents) == {"p/1/1"}
    assert (memory.refusals, memory.bars) == ({}, {})
    memory = reduce(memory, came_back(1, Outcome.FAILED, at=90.0))
    assert memory.intents == {}
    assert set(memory.refusals) == {where()}


def test_a_throttled_launch_is_asked_again_with_its_token_after_a_growing_pause() -> None:
    waits, memory = [], replay([asked(1, where(), at=0.0)])
    at = 0.0
    for _ in range(9):
        memory = reduce(memory, came_back(1, Outcome.THROTTLED, at=at))
        intent = memory.intents["p/1/1"]
        waits.append(next(w / 10 for w in range(1, 1000) if intent.due(at + w / 10, 60.0)))
        at += waits[-1]
        memory = reduce(memory, asked(1, where(), at=at))
    pauses = (1, 2, 4, 8, 16, 16, 16, 16, 16)  # not longer: the provider's rate would lie idle
    assert all(most / 2 <= w <= most for w, most in zip(waits, pauses, strict=True))
    assert len({w % 1 for w in waits}) > 3


def test_what_is_throttled_is_said() -> None:
    here = Scene(Pool(name="p", replicas=4)).nodes(3)
    said = "1 call waits: the provider takes no more at once, and each is asked again."
    here.launching("p/7/1", unanswered=True)
    assert said not in explain.pool_sentences(here.fleet, here.world, here.memory)
    here.launching("p/7/1", unanswered=True, throttled=2)
    assert said in explain.pool_sentences(here.fleet, here.world, here.memory)
    here.launching("p/7/1", throttled=2)  # asked again a moment ago
    assert said not in explain.pool_sentences(here.fleet, here.world, here.memory)


def test_a_region_that_throttles_is_waited_for_while_it_takes_others() -> None:
    """A wave that exceeds the rate of one region goes on there; one that stands still begins elsewhere."""
    here = Scene(Pool(name="p", replicas=4)).nodes(1).nodes(2, ON_DEMAND)
    here.launching("p/7/1", ago=500.0, attempts=9, throttled=9, unanswered=True, placement=where())
    here.settings["regions"] = {
        "r": Observed(value=tuple(here.instances.values()), at=here.now),
        "other": Observed(value=(), at=here.now),
    }
    assert here.fleet.sight.avoided("r") == "a launch there has had no answer for 500 s"
    here.node("young", ready=False, age=59.0)
    assert here.fleet.sight.avoided("r") == ""
    here.now += 1.0
    assert here.fleet.sight.avoided("r") == "a launch there has had no answer for 60 s"
    here.launching("p/7/2", accepted_at=here.now - 5.0, placement=where())
    assert here.fleet.sight.avoided("r") == ""
    here.launching("p/7/1", ago=500.0, attempts=9, throttled=7, unanswered=True, placement=where())
    assert here.fleet.sight.avoided("r") == "a launch there has had no answer for 500 s"


def test_throttled_launches_do_not_all_ask_at_one_moment() -> None:
    """Else most of them meet too many calls again, and the rate that there is goes unused meanwhile."""
    intents = [replay([asked(n, where(), at=0.0)]).intents[f"p/1/{n}"] for n in range(200)]
    again = [replace(i, unanswered=True, attempts=7, throttled=7) for i in intents]
    due = [sum(i.due(float(at), 60.0) for i in again) for at in (7, 8, 10, 12, 14, 16)]
    assert (due[0], due[-1]) == (0, 200)
    assert all(30 < later - earlier < 70 for earlier, later in pairwise(due[1:]))


def test_a_launch_that_may_have_landed_is_not_forgotten_for_a_denial() -> None:
    """Its machine may be there and not listed; one that shows up later still is adopted."""
    lost = [asked(1, where(), at=10.0), came_back(1, Outcome.UNCERTAIN, at=11.0)]
    early = replay([*lost, asked(1, where(), at=12.0), came_back(1, Outcome.DENIED, at=13.0)])
    assert set(early.intents) == {"p/1/1"}
    assert set(early.bars) == {("r", SPOT)}
    late = LANDS_WITHIN + 10.0
    assert reduce(early, asked(1, where(), at=late), came_back(1, Outcome.DENIED, at=late)).intents == {}


@pytest.mark.parametrize("open_still", [True, False])
def test_a_denial_speaks_of_the_time_of_the_newest_call(open_still: bool) -> None:
    """What was taken before a launch of an old journal was asked for again shows no market to be open."""
    meanwhile = [asked(2, where(zone="b"), at=50.0), seen(2, at=51.0, placement=where(zone="b"))]
    again = [asked(3, where(zone="c"), at=90.0), asked(3, where(zone="c"), at=201.0)]
    answer = came_back(3, Outcome.DONE if open_still else Outcome.FAILED, at=202.0)
    told = [asked(1, where(), at=10.0), *meanwhile, *again, asked(1, where(), at=200.0), answer]
    memory = replay([*told, came_back(1, Outcome.DENIED, at=203.0)])
    assert set(memory.bars) == (set() if open_still else {("r", SPOT)})


@pytest.mark.parametrize("other", [1, 2])
def test_a_denial_that_comes_once_the_machine_is_seen_pauses_the_market(other: int) -> None:
    """The call was made again before a list showed the machine of the first one."""
    again = [*launch(1, Outcome.DONE, at=10.0), asked(1, where(), at=30.0), seen(1, at=31.0)]
    memory = replay([*again, came_back(other, Outcome.DENIED, at=32.0)])
    assert set(memory.bars) == ({("r", SPOT)} if other == 1 else set())


@pytest.mark.parametrize("kind", [ActionKind.TERMINATE, ActionKind.STOP])
def test_what_may_not_be_ended_pauses_no_market_and_is_asked_again(kind: ActionKind) -> None:
    opened = IntentOpened(at=10.0, token=f"n:{kind}", kind=kind, node="n")
    memory = replay([opened, IntentClosed(at=11.0, token=f"n:{kind}", outcome=Outcome.DENIED)])
    assert set(memory.intents) == {f"n:{kind}"}
    assert memory.bars == {}


def test_an_accepted_launch_ends_the_pause_of_what_was_not_allowed() -> None:
    denied = launch(1, Outcome.DENIED, at=10.0)
    assert replay([*denied, *launch(2, Outcome.DONE, at=400.0)]).bars == {}


def test_a_trial_elsewhere_opens_the_market_and_says_nothing_of_what_failed_before() -> None:
    denied = launch(1, Outcome.DENIED, at=10.0, placement=where(zone="a"))
    memory = replay([*denied, *launch(2, Outcome.DONE, at=400.0, placement=where(zone="b"))])
    assert (memory.bars, memory.refusals) == ({}, {})


def test_in_a_wave_the_places_that_work_are_not_paused_for_those_that_do_not() -> None:
    asked_for = [asked(n, where(zone="ab"[n % 2]), at=10.0) for n in range(1, 5)]
    here = [came_back(n, Outcome.DONE, at=10.5) for n in (1, 3)]
    there = [came_back(n, Outcome.MISCONFIGURED, at=11.0) for n in (2, 4)]
    for answers in ([*here, *there], [*there, *here]):
        memory = replay([*asked_for, *answers])
        assert (memory.bars, set(memory.refusals)) == ({}, {where(zone="a")})
    listed = [seen(n, at=10.8, placement=where(zone="b")) for n in (1, 3)]
    assert replay([*asked_for, *here, *listed, *there]).bars == {}
    # One that was accepted before this was asked for says nothing of what is allowed since.
    late = launch(9, Outcome.DENIED, at=500.0, placement=where(zone="a"))
    assert set(replay([*asked_for, *here, *listed, *late]).bars) == {("r", SPOT)}


@pytest.mark.parametrize(("epoch", "paused"), [(1, True), (2, False)])
def test_a_machine_of_an_earlier_daemon_says_nothing_of_what_is_allowed_now(epoch: int, paused: bool) -> None:
    """It is adopted where the clock is behind the provider's: its launch seems to be of this moment."""
    there = replace(seen(3, at=10.0, placement=where(zone="b")), token=f"p/{epoch}/3")
    now = replace(asked(9, where(zone="a"), at=10.0), token="p/2/9")
    answer = replace(came_back(9, Outcome.DENIED, at=10.5), token="p/2/9")
    assert (set(replay([there, now, answer]).bars) == {("r", SPOT)}) is paused


def test_the_launch_that_tries_goes_elsewhere_than_what_failed() -> None:
    """Else one zone that cannot be had, and holds no node for that, is tried for ever."""
    failed = tuple(o.placement for o in Scene().offerings if o.placement.zone != "b")
    old = bar(at=10_000.0 - PAUSE_FIRST, places=failed)
    here = Scene(Pool(name="p", replicas=10), bars={("r", m): old for m in Market}).nodes(6)
    tries = {a.placement.zone for a in of_kind(here.plan(), Launch)}
    assert tries == {"b"}
    everywhere = tuple(o.placement for o in here.offerings)
    here.fields["bars"] = {("r", m): replace(old, places=everywhere) for m in Market}
    assert of_kind(here.plan(), Launch)


def test_an_accepted_launch_does_not_end_the_pause_of_machines_that_never_start() -> None:
    failed = [e for n in range(1, 4) for e in stillborn(n, at=10.0 * n)]
    memory = replay([*failed, *launch(4, Outcome.DONE, at=400.0)])
    assert memory.bars[("r", SPOT)].boots == 3


def test_a_node_that_is_ready_ends_the_pause_and_what_was_counted() -> None:
    failed = [*stillborn(1, at=10.0), *stillborn(2, at=20.0)]
    up = [*launch(3, Outcome.DONE, at=30.0), seen(3, at=31.0), NodeReady(at=90.0, node="i-3", address="x:1")]
    memory = replay([*failed, *up])
    assert memory.bars == {}
    assert memory.ready_once
    again = reduce(memory, *stillborn(4, at=100.0), *stillborn(5, at=110.0))
    assert not bars.holds(again.bars[("r", SPOT)], Pool(name="p", replicas=1).health)


def test_a_node_launched_before_the_denial_does_not_end_its_pause() -> None:
    up = [*launch(1, Outcome.DONE, at=10.0), seen(1, at=11.0)]
    denied = launch(2, Outcome.DENIED, at=50.0)
    assert set(replay([*up, *denied, NodeReady(at=90.0, node="i-1", address="x:1")]).bars) == {("r", SPOT)}


# -- machines that never start -------------------------------------------------------------------------


def test_a_machine_that_never_started_is_a_failed_boot_and_no_preemption() -> None:
    calm = replay([DaemonStarted(at=0.0, epoch=1), *launch(1, Outcome.DONE, at=10.0), seen(1, at=11.0)])
    memory = reduce(calm, stillborn(1, at=10.0)[-1])
    assert memory.preemptions == memory.preemptions_without_notice == 0
    assert (memory.swaps, memory.reclaims, memory.refusals) == ({}, {}, {})
    assert memory.spot_lost_at is None
    assert memory.boot_failures[where()].weight == 1.0
    zone = memory.zones[where()]
    assert (zone.losses, zone.lost, zone.losing_since) == (0.0, 0, None)
    assert zone.bad_at == calm.zones[where()].bad_at


def test_one_that_was_to_take_a_place_gives_it_back() -> None:
    out = seen(7, at=1.0)
    swap = replace(asked(1, where(), at=10.0), replaces="i-7")
    memory = replay([out, swap, *stillborn(1, at=10.0)[1:]])
    assert memory.swaps["i-7"].incoming == ""
    assert memory.incoming == {}


def test_accepted_and_then_not_given_is_a_refusal() -> None:
    events = [*launch(1, Outcome.DONE, at=10.0), seen(1, at=11.0)]
    memory = replay([*events, NodeGone(at=12.0, node="i-1", cause=GoneCause.REFUSED, ended=True)])
    assert set(memory.refusals) == {where()}
    assert (memory.boot_failures, memory.bars, memory.failed_starts) == ({}, {}, 0)
    assert memory.preemptions == 0


@pytest.mark.parametrize(
    ("ending", "ready", "market", "cause"),
    [
        (Ending.FAULT, False, SPOT, GoneCause.NEVER_STARTED),
        (Ending.FAULT, False, ON_DEMAND, GoneCause.NEVER_STARTED),
        (Ending.FAULT, True, SPOT, GoneCause.LOST),
        (Ending.FAULT, True, ON_DEMAND, GoneCause.LOST),
        (Ending.CAPACITY, False, SPOT, GoneCause.REFUSED),
        (Ending.CAPACITY, False, ON_DEMAND, GoneCause.REFUSED),
        (Ending.REQUEST, False, SPOT, GoneCause.LOST),
        (Ending.REQUEST, True, SPOT, GoneCause.LOST),
        (Ending.RECLAIM, False, SPOT, GoneCause.UNANNOUNCED),
        (Ending.RECLAIM, True, SPOT, GoneCause.UNANNOUNCED),
        (Ending.UNKNOWN, False, SPOT, GoneCause.UNANNOUNCED),
        (Ending.UNKNOWN, True, ON_DEMAND, GoneCause.LOST),
    ],
)
def test_why_a_machine_ended(ending: Ending, ready: bool, market: Market, cause: GoneCause) -> None:
    here = Scene().nodes(2).node("x", market, ready=ready, state=InstanceState.TERMINATED, serving=False)
    here.instances["x"] = replace(here.instances["x"], ending=ending, ending_why="the words")
    (gone,) = [e for e in observations.changes(here.pool, here.world, here.memory) if isinstance(e, NodeGone)]
    assert (gone.node, gone.cause, gone.ended, gone.detail) == ("x", cause, True, "the words")


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (Ending.FAULT, GoneCause.NEVER_STARTED),
        (Ending.CAPACITY, GoneCause.REFUSED),
        (Ending.REQUEST, GoneCause.LOST),
        (Ending.RECLAIM, GoneCause.UNANNOUNCED),
    ],
)
def test_why_a_machine_ended_that_no_list_showed_before(ending: Ending, cause: GoneCause) -> None:
    here = Scene().nodes(2).node("x", state=InstanceState.TERMINATED, serving=False)
    here.instances["x"] = replace(here.instances["x"], ending=ending)
    del here.records["x"]
    here.launching("p/7/x", placement=where())
    found = observations.changes(here.pool, here.world, here.memory)
    assert [e.cause for e in found if isinstance(e, NodeGone)] == [cause]


def test_a_notice_that_is_not_over_still_says_that_a_working_node_was_reclaimed() -> None:
    here = Scene().nodes(2).node("x", state=InstanceState.TERMINATED, serving=False)
    here.notice("x", kind=NoticeKind.INTERRUPTION)
    here.instances["x"] = replace(here.instances["x"], ending=Ending.RECLAIM)
    (gone,) = [e for e in observations.changes(here.pool, here.world, here.memory) if isinstance(e, NodeGone)]
    assert gone.cause is GoneCause.RECLAIMED


# -- a pool that never started -------------------------------------------------------------------------


def fresh(replicas: int = 40, **memory: Any) -> Any:
    return Scene(Pool(name="p", replicas=replicas), whole_at=None, ready_once=False, **memory)


def test_a_new_pool_launches_three_until_one_machine_runs() -> None:
    here = fresh()
    plan = here.plan()
    assert len(of_kind(plan, Launch)) == 3
    assert "no machine of this pool was seen running yet: 3 are on their way" in {
        d.reason for d in plan.deferred
    }
    for n in range(3):
        here.node(f"x{n}", ready=False, state=InstanceState.PENDING, age=5.0)
    assert of_kind(here.plan(), Launch) == []
    here.node("x0", ready=False, age=20.0)
    assert len(of_kind(here.plan(), Launch)) > 10


def test_launches_that_are_open_and_boots_that_failed_count_alike() -> None:
    here = fresh(failed_starts=1).launching("p/7/1")
    assert len(of_kind(here.plan(), Launch)) == 1
    assert of_kind(fresh(failed_starts=2).launching("p/7/1").plan(), Launch) == []


def test_launches_where_nobody_answers_keep_no_other_region_waiting() -> None:
    here = fresh(4)
    for n in range(3):
        here.launching(f"p/7/{n}", ago=500.0, attempts=9, unanswered=True, landed=True)
    far = [Offering(placement=where(m, region="far"), price=1.0) for m in Market]
    here.offerings += far
    here.settings["regions"] = {
        "r": Observed(value=(), at=here.now),
        "far": Observed(value=(), at=here.now),
    }
    assert {a.placement.region for a in of_kind(here.plan(), Launch) if a.token > "p/7/2"} == {"far"}


@pytest.mark.parametrize("replicas", [1, 4, 200])
def test_after_three_failed_boots_nothing_more_is_launched(replicas: int) -> None:
    here = fresh(replicas, failed_starts=3)
    plan = here.plan()
    assert of_kind(plan, Launch) == []
    assert {d.reason for d in plan.deferred} == {STOPPED}
    (alarm,) = of_kind(plan, Alarm)
    assert alarm.name == "never-started"
    assert alarm.reason.startswith(STOPPED)
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert f"{alarm.reason[0].upper()}{alarm.reason[1:]}." in said


def test_a_stopped_pool_does_not_ask_again_for_what_surely_did_nothing() -> None:
    here = fresh(failed_starts=3).launching("p/7/1", ago=90.0, unanswered=True)
    assert of_kind(here.plan(), Launch) == []
    here.launching("p/7/1", ago=90.0, unanswered=True, landed=True)  # its outcome has to be known
    assert [a.token for a in of_kind(here.plan(), Launch)] == ["p/7/1"]


def test_boots_that_are_given_up_together_are_followed_by_no_others() -> None:
    """Their time is over in one turn: what takes their place would be as lost as they are."""
    here = fresh(6)
    for n in range(6):
        here.node(f"x{n}", ready=False, age=1_000.0)
    plan = here.plan()
    assert [a.cause for a in of_kind(plan, Terminate)] == [Cause.BOOT] * 6
    assert of_kind(plan, Launch) == []
    assert STOPPED in {d.reason for d in plan.deferred}


def test_boots_that_are_given_up_one_by_one_count_before_they_have_ended() -> None:
    events: list[Event] = []
    for n in range(1, 4):
        ended = IntentOpened(
            at=900.0 + n,
            token=f"i-{n}:terminate",
            kind=ActionKind.TERMINATE,
            node=f"i-{n}",
            cause=Cause.BOOT,
        )
        again = replace(ended, at=920.0 + n)
        events += [*launch(n, Outcome.DONE, at=10.0), seen(n, at=11.0), ended, again]
    pool = Pool(name="p", replicas=40)
    assert bars.never_started(pool, replay(events)) == STOPPED
    gone = [NodeGone(at=950.0, node=f"i-{n}", cause=GoneCause.TERMINATED) for n in range(1, 4)]
    assert bars.failed_starts(replay([*events, *gone])) == 3


def test_what_began_to_boot_before_somebody_resumed_does_not_stop_the_pool_again() -> None:
    """It still has what was wrong: its end comes after the fix and says nothing of it."""
    pool, gone = Pool(name="p", replicas=40), {"cause": GoneCause.NEVER_STARTED, "ended": True}
    up = [e for n in range(1, 7) for e in (*launch(n, Outcome.DONE, at=10.0), seen(n, at=11.0))]
    first = [NodeGone(at=20.0, node=f"i-{n}", **gone) for n in range(1, 4)]  # type: ignore[arg-type]
    ending = IntentOpened(
        at=29.0, token="i-4:terminate", kind=ActionKind.TERMINATE, node="i-4", cause=Cause.BOOT
    )
    stopped = replay([*up, *first, ending])
    assert bars.never_started(pool, stopped) == STOPPED
    resumed = reduce(stopped, Resumed(at=30.0, by="someone"))
    late = [NodeGone(at=40.0, node=f"i-{n}", **gone) for n in range(4, 7)]  # type: ignore[arg-type]
    assert bars.failed_starts(resumed) == bars.failed_starts(reduce(resumed, *late)) == 0
    again = [e for n in range(11, 14) for e in stillborn(n, at=50.0 + n)]
    assert bars.never_started(pool, reduce(resumed, *late, *again)) == STOPPED


def test_how_many_boots_may_fail_is_a_setting() -> None:
    pool = Pool(name="p", replicas=40)
    pool = replace(pool, health=replace(pool.health, give_up_after=7))
    here = Scene(pool, whole_at=None, ready_once=False, failed_starts=3)
    assert len(of_kind(here.plan(), Launch)) == 4


@pytest.mark.parametrize(
    "pool",
    [
        Pool(name="p", replicas=1, standby=StandbyRules(stopped=9)),
        Pool(name="p", replicas=1, standby=StandbyRules(hot=9)),
        Pool(name="p", replicas=40, units={"gpu": 4}),
        Pool(name="p", replicas=40, adaptive=AdaptiveRules()),
    ],
    ids=["stopped standbys", "hot standbys", "large nodes", "adaptive"],
)
def test_whatever_a_new_pool_wants_three_are_launched_first(pool: Pool) -> None:
    here = Scene(pool, whole_at=None, ready_once=False)
    first = len(of_kind(here.plan(), Launch))
    assert 1 <= first <= 3
    for n in range(3):
        here.launching(f"p/7/{n}")
    assert of_kind(here.plan(), Launch) == []
    here.fields.update(intents={}, failed_starts=3)
    assert of_kind(here.plan(), Launch) == []


def test_neither_a_restart_nor_another_configuration_is_another_try() -> None:
    """What is wrong is most often in no file, and deployments are frequent: a person says when to try."""
    failed = [e for n in range(1, 4) for e in stillborn(n, at=10.0 * n)]
    stopped = replay([PoolConfigured(at=0.0, replicas=4), *failed])
    again = reduce(stopped, DaemonStarted(at=50.0, epoch=2), PoolConfigured(at=51.0, replicas=9, hot=1))
    assert again.failed_starts == 3
    pool = Pool(name="p", replicas=9)
    assert bars.never_started(pool, again) == STOPPED
    more = replace(pool, health=replace(pool.health, give_up_after=5))
    assert bars.never_started(more, again) == ""


def test_a_denial_that_was_on_its_way_at_a_resume_begins_a_first_pause() -> None:
    denied = [e for n in range(3) for e in launch(n, Outcome.DENIED, at=10.0 + 4000.0 * n)]
    old = replay([*denied, asked(7, where(), at=9_000.0)])
    assert old.bars[("r", SPOT)].count == 3
    after = reduce(old, Resumed(at=9_001.0, by="someone"), came_back(7, Outcome.DENIED, at=9_002.0))
    assert after.bars[("r", SPOT)].count == 1
    assert until(after.bars[("r", SPOT)]) == 9_002.0 + PAUSE_FIRST


def test_large_nodes_cover_what_was_there_and_no_more() -> None:
    pool = Pool(name="p", replicas=40, units={"gpu": 4})
    here = paused(SPOT, pool=pool, whole_at=None, reached=20).nodes(3, ON_DEMAND)
    assert launched(here.plan(), ON_DEMAND) == 2  # 12 units of the floor, and 8 that stood on spot
    here.fields["reached"] = 12
    assert launched(here.plan(), ON_DEMAND) == 0


def test_a_pool_of_one_waits_for_spot_that_is_not_allowed_and_says_so() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=1, spot_share=1.0), whole_at=None)
    plan = here.plan()
    assert of_kind(plan, Launch) == []
    assert [a.name for a in of_kind(plan, Alarm)] == ["market-paused"]
    assert judged(here).state is State.DOWN
    here.launching("p/7/1")
    assert judged(here).state is State.STARTING


def test_a_pool_that_had_a_ready_node_never_stops_as_a_whole() -> None:
    here = Scene(Pool(name="p", replicas=4), failed_starts=99, ready_once=True)
    assert of_kind(here.plan(), Launch)


def test_failed_boots_count_only_until_a_node_was_ready() -> None:
    up = [*launch(1, Outcome.DONE, at=10.0), seen(1, at=11.0), NodeReady(at=60.0, node="i-1", address="x:1")]
    failed = [e for n in range(2, 9) for e in stillborn(n, at=100.0 * n)]
    memory = replay([*up, *failed])
    assert (memory.ready_once, memory.failed_starts) == (True, 0)


@pytest.mark.parametrize("way", ["never started", "died at once", "given up", "lost before it was ready"])
def test_every_failed_boot_counts(way: str) -> None:
    there = where(ON_DEMAND)
    up = [*launch(1, Outcome.DONE, at=10.0, placement=there), seen(1, at=11.0, placement=there)]
    ended = IntentOpened(
        at=900.0, token="i-1:terminate", kind=ActionKind.TERMINATE, node="i-1", cause=Cause.BOOT
    )
    events: dict[str, list[Event]] = {
        "never started": stillborn(1, at=10.0),
        "died at once": launch(1, Outcome.DIED, at=10.0),
        "given up": [*up, ended, NodeGone(at=910.0, node="i-1", cause=GoneCause.TERMINATED)],
        "lost before it was ready": [*up, NodeGone(at=20.0, node="i-1", cause=GoneCause.LOST)],
    }
    assert replay(events[way]).failed_starts == 1


def test_what_is_reclaimed_or_refused_is_no_failed_boot() -> None:
    up = [*launch(1, Outcome.DONE, at=10.0), seen(1, at=11.0)]
    for cause in (GoneCause.UNANNOUNCED, GoneCause.RECLAIMED, GoneCause.REFUSED, GoneCause.TERMINATED):
        assert replay([*up, NodeGone(at=20.0, node="i-1", cause=cause)]).failed_starts == 0
    for outcome in (Outcome.REFUSED, Outcome.QUOTA, Outcome.DENIED, Outcome.WITHDRAWN):
        assert replay(launch(1, outcome, at=10.0)).failed_starts == 0


def test_what_was_counted_holds_after_a_restart() -> None:
    failed = [e for n in range(1, 4) for e in stillborn(n, at=10.0 * n)]
    memory = replay([DaemonStarted(at=0.0, epoch=1), *failed, DaemonStarted(at=99.0, epoch=2)])
    assert (memory.failed_starts, memory.ready_once) == (3, False)
    assert memory.bars[("r", SPOT)].boots == 3


@pytest.mark.parametrize("known", [{"served_at": 5.0}, {"whole_at": 5.0}])
def test_a_snapshot_of_an_older_version_tells_that_a_node_was_ready(known: dict[str, float]) -> None:
    assert reduce(Memory(**known), DaemonStarted(at=9.0, epoch=2)).ready_once
    assert not reduce(Memory(), DaemonStarted(at=9.0, epoch=2)).ready_once


def test_resume_clears_everything_of_this_kind() -> None:
    failed = [e for n in range(1, 4) for e in stillborn(n, at=10.0 * n)]
    memory = replay([*failed, *launch(9, Outcome.DENIED, at=50.0, placement=where(ON_DEMAND))])
    assert memory.failed_starts == 3
    assert len(memory.bars) == 2
    after = reduce(memory, Resumed(at=60.0, by="someone"))
    assert (after.failed_starts, after.bars, after.boot_failures) == (0, {}, {})


# -- a market that is paused ---------------------------------------------------------------------------


def test_spot_that_was_never_there_is_not_built_on_demand() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=10), whole_at=None, reached=3).nodes(3, ON_DEMAND)
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (0, 0)
    assert "no spot offering may be tried now: spot in r is paused for 290 s more" in plan.notes
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert len([each for each in said if ROLE in each]) == 1


def test_the_floor_is_built_all_the_same() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=10), whole_at=None)
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (0, 3)


def test_without_a_pause_all_that_is_missing_is_covered() -> None:
    here = Scene(Pool(name="p", replicas=10), whole_at=None, reached=3).nodes(3, ON_DEMAND)
    here.offerings = [o for o in here.offerings if o.placement.market is ON_DEMAND]
    assert launched(here.plan(), ON_DEMAND) == 7


def test_what_was_there_is_covered_also_in_a_pool_that_never_was_whole() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=10), whole_at=None, reached=8)
    here.nodes(3, ON_DEMAND).nodes(3)
    assert launched(here.plan(), ON_DEMAND) == 2
    here.notice("s0")
    assert launched(here.plan(), ON_DEMAND) == 3


def test_a_pool_that_was_whole_covers_every_loss() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=10)).nodes(3, ON_DEMAND).nodes(7)
    here.notice("s0")
    here.notice("s1")
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (0, 2)


def test_how_far_a_pool_was_outlives_a_larger_wish_and_not_a_smaller_one() -> None:
    memory = replay([PoolConfigured(at=0.0, replicas=10), PoolGrew(at=1.0, ready=8)])
    assert memory.reached == 8
    assert reduce(memory, PoolConfigured(at=2.0, replicas=20)).reached == 8
    small = reduce(memory, PoolConfigured(at=2.0, replicas=5))
    assert small.reached == 5
    assert reduce(small, PoolConfigured(at=3.0, replicas=20)).reached == 5


def test_a_pool_that_was_whole_and_grows_keeps_what_it_had() -> None:
    memory = replace(replay([PoolConfigured(at=0.0, replicas=10)]), whole_at=5.0)
    memory = reduce(memory, PoolConfigured(at=9.0, replicas=20))
    assert (memory.reached, memory.whole_at) == (10, None)


def test_spot_that_one_region_still_sells_takes_it_all() -> None:
    here = Scene(Pool(name="p", replicas=10), whole_at=None, bars={("r", SPOT): bar()}).nodes(3, ON_DEMAND)
    here.offerings.append(Offering(placement=where(region="far"), price=9.0))
    here.settings["regions"] = {
        "r": Observed(value=tuple(here.instances.values()), at=here.now),
        "far": Observed(value=(), at=here.now),
    }
    found = of_kind(here.plan(), Launch)
    assert {(a.placement.region, a.placement.market) for a in found} == {("far", SPOT)}
    assert len(found) == 7


def test_after_the_pause_one_launch_tries() -> None:
    old = {("r", SPOT): bar(at=10_000.0 - PAUSE_FIRST)}
    here = Scene(Pool(name="p", replicas=10), whole_at=None, reached=3, bars=old).nodes(3, ON_DEMAND)
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (1, 0)
    here.launching("p/7/9")
    assert launched(here.plan(), SPOT) == 0
    assert not [a for a in plan.actions if isinstance(a, Alarm) and a.name == "InvariantViolated"]


def test_a_machine_that_tries_a_market_of_stillborn_ones_is_waited_for() -> None:
    old = {("r", SPOT): bar(at=9_000.0, denied=False, boots=3)}
    here = Scene(Pool(name="p", replicas=10), bars=old).nodes(9, ON_DEMAND)
    here.node("x", ready=False, age=30.0)
    assert launched(here.plan(), SPOT) == 0
    here.node("x", ready=False, age=1_100.0)  # launched before the last one failed: no trial
    assert launched(here.plan(), SPOT) == 1


def test_launches_left_from_a_wave_are_asked_again_one_by_one() -> None:
    old = {("r", SPOT): bar(at=9_000.0)}
    here = Scene(Pool(name="p", replicas=10), bars=old).nodes(5, ON_DEMAND)
    for n in range(4):
        here.launching(f"p/7/{n}", ago=900.0, unanswered=True, attempts=9, throttled=9)
    assert launched(here.plan(), SPOT) == 1
    here.launching("p/7/0", ago=2.0, attempts=10, throttled=9)  # on its way
    assert launched(here.plan(), SPOT) == 0
    here.fields["bars"] = {("r", SPOT): bar(at=9_900.0)}
    here.launching("p/7/0", ago=900.0, unanswered=True, attempts=9, throttled=9)
    assert launched(here.plan(), SPOT) == 0


def test_where_everything_is_paused_a_pool_that_ran_is_tried_every_five_minutes() -> None:
    long = {("r", m): bar(at=10_000.0 - PAUSE_FIRST, count=5) for m in Market}
    here = Scene(Pool(name="p", replicas=4), bars=long)
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (1, 1)
    here.fields.update(ready_once=False, whole_at=None)
    assert launched(here.plan(), SPOT) == launched(here.plan(), ON_DEMAND) == 0
    here.fields.update(ready_once=True, bars={("r", SPOT): long[("r", SPOT)]})  # on-demand is open
    assert launched(here.plan(), SPOT) == 0


def test_a_healthy_pool_does_nothing_else_for_a_pause() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(3, ON_DEMAND).nodes(7)
    calm = here.plan()
    here.fields["bars"] = {("r", m): bar() for m in Market}
    plan = here.plan()
    assert [a for a in plan.actions if not isinstance(a, Alarm)] == list(calm.actions)
    assert (plan.targets, plan.write) == (calm.targets, calm.write)


def test_each_paused_market_has_its_alarm_with_the_words_and_what_to_do() -> None:
    here = Scene(bars={("r", SPOT): bar(), ("r", ON_DEMAND): bar(denied=False, boots=3, why="KMS")})
    found = {a.about: a for a in of_kind(here.plan(), Alarm)}
    assert set(found) == {"spot in r", "on-demand in r"}
    assert {a.name for a in found.values()} == {"market-paused"}
    assert ROLE in found["spot in r"].reason
    assert "KMS" in found["on-demand in r"].reason
    assert all("orchestrator resume" in a.reason for a in found.values())
    said = explain.pool_sentences(here.fleet, here.world, here.memory)
    assert any(s.startswith("Spot in r is paused") and ROLE in s and "the next in 290 s" in s for s in said)


def test_two_stillborn_machines_pause_nothing() -> None:
    here = Scene(bars={("r", SPOT): bar(denied=False, boots=2)})
    plan = here.plan()
    assert of_kind(plan, Alarm) == []
    assert launched(plan, SPOT) > 0


def test_machines_that_failed_to_start_make_no_trial_of_a_market_before_it_is_paused() -> None:
    """Else what they were to be is built on demand while the first of those that follow them boots."""
    here = Scene(
        Pool(name="p", replicas=10),
        whole_at=None,
        reached=3,
        bars={("r", SPOT): bar(denied=False, boots=2)},
    )
    here.nodes(3, ON_DEMAND).launching("p/7/1", ago=1.0)
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (6, 0)


def test_an_account_whose_key_is_not_granted_has_one_alarm() -> None:
    stillborn_bar = {("r", SPOT): bar(denied=False, boots=3)}
    here = fresh(failed_starts=3, bars=stillborn_bar)
    assert [a.name for a in of_kind(here.plan(), Alarm)] == ["never-started"]


def test_the_adaptive_mix_builds_nothing_on_demand_for_a_pause() -> None:
    pool = Pool(name="p", replicas=10, adaptive=AdaptiveRules())
    here = paused(SPOT, pool=pool, whole_at=None, reached=3).nodes(3, ON_DEMAND)
    assert adaptive.on_demand_price(here.turn()) == 3.0
    plan = here.plan()
    assert (launched(plan, SPOT), launched(plan, ON_DEMAND)) == (0, 0)
    here.fields["reached"] = 5
    assert launched(here.plan(), ON_DEMAND) == 2
    here.fields["whole_at"] = 9_000.0
    assert launched(here.plan(), ON_DEMAND) >= 7


def test_a_paused_market_keeps_no_standby_from_being_started() -> None:
    pool = Pool(name="p", replicas=4, standby=StandbyRules(stopped=1))
    here = paused(ON_DEMAND, pool=pool).nodes(2).nodes(1, ON_DEMAND)
    here.node("w", ON_DEMAND, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED, serving=False)
    assert [a.node for a in of_kind(here.plan(), Start)] == ["w"]


def test_a_standby_that_may_not_be_started_makes_way_for_a_launch() -> None:
    pool = Pool(name="p", replicas=4, standby=StandbyRules(stopped=1))
    here = Scene(pool).nodes(2).nodes(1, ON_DEMAND)
    here.node("w", ON_DEMAND, state=InstanceState.STOPPED, standby=StandbyKind.STOPPED, serving=False)
    opened = IntentOpened(at=here.now - 1.0, token="w:start", kind=ActionKind.START, node="w")
    closed = IntentClosed(at=here.now, token="w:start", outcome=Outcome.DENIED)
    memory = reduce(here.memory, opened, closed)
    assert memory.nodes["w"].standby is StandbyKind.STOPPED
    assert (memory.refusals, memory.bars, memory.intents) == ({}, {}, {})
    here.records["w"] = memory.nodes["w"]
    plan = here.plan()
    assert of_kind(plan, Start) == []
    assert launched(plan, ON_DEMAND) == 1
    here.now += PAUSE_FIRST
    assert len(of_kind(here.plan(), Start)) == 1


# -- how the pool is -----------------------------------------------------------------------------------


def judged(here: Scene) -> Any:
    return judge(here.fleet, here.world, here.memory)


def test_a_pool_that_has_stopped_does_not_start() -> None:
    here = fresh(failed_starts=2)
    assert judged(here).state is State.STARTING
    here.fields["failed_starts"] = 3
    assert judged(here).state is State.DOWN
    (event,) = change(judged(here), here.fleet, here.world, here.memory)
    assert STOPPED in event.why


def test_a_pool_that_waits_for_spot_that_is_paused_does_not_start() -> None:
    here = paused(SPOT, pool=Pool(name="p", replicas=10), whole_at=None, reached=3).nodes(3, ON_DEMAND)
    assert judged(here).state is State.BELOW_FLOOR
    (event,) = change(judged(here), here.fleet, here.world, here.memory)
    assert "spot in r is paused" in event.why
    here.launching("p/7/1")
    assert judged(here).state is State.STARTING
    # Too many calls: it surely did nothing, and waits for the pause to end.
    here.launching("p/7/1", unanswered=True, throttled=1)
    assert judged(here).state is State.BELOW_FLOOR
