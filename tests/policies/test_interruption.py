"""Which notices are believed."""

from __future__ import annotations

from typing import Any

import pytest

from policies.actions import Cause, Drain, Launch, Terminate, Undrain
from policies.events import GoneCause, NodeGone, NodeSeen, NoticeSeen, OperatorDrained, OperatorUndrained
from policies.memory import Memory, add_notice, reduce
from policies.model import Confidence, Market, Notice, NoticeKind, Pool, StandbyKind
from policies.records import NOTICES_KEPT, applies
from policies.value import replace
from tests.support.scene import Scene, noticed
from tests.support.toy_pools import of_kind, place

REPORTED = Confidence.REPORTED


def said(**more: Any) -> Notice:
    base: dict[str, Any] = {
        "id": "n1",
        "kind": NoticeKind.INTERRUPTION,
        "node": "a",
        "deadline": 120.0,
        "source": "feed",
        "confidence": Confidence.CONFIRMED,
        "seen_at": 0.0,
    }
    return Notice(**{**base, **more})


@pytest.mark.parametrize(
    ("kind", "spot", "on_demand"),
    [
        (NoticeKind.INTERRUPTION, True, False),
        (NoticeKind.MAINTENANCE, True, True),
        (NoticeKind.STATE_CHANGE, True, True),
        (NoticeKind.STOP, True, False),
        (NoticeKind.REBALANCE, False, False),
    ],
)
def test_what_a_kind_can_take_away(kind: NoticeKind, spot: bool, on_demand: bool) -> None:
    assert applies(said(kind=kind), spot=True) is spot
    assert applies(said(kind=kind), spot=False) is on_demand
    assert not applies(said(kind=kind, cancelled=True), spot=True)


def test_an_interruption_of_an_on_demand_node_is_ignored() -> None:
    here = Scene().nodes(2).nodes(2, Market.ON_DEMAND)
    here.notice("o0")
    plan = here.plan()
    assert of_kind(plan, Drain) == []
    assert of_kind(plan, Launch) == []
    assert here.fleet.by_id["o0"].ready


def test_the_earliest_deadline_wins() -> None:
    here = Scene().nodes(4)
    here.notice("s0", 120.0, id="late")
    here.notice("s0", 30.0, id="early")
    here.notice("s0", 10.0, id="void", cancelled=True)
    leaving = noticed(here.pool, here.world, here.memory)
    assert {node: notice.id for node, notice in leaving.items()} == {"s0": "early"}


def test_reports_doom_no_more_than_the_disruption_budget_oldest_first() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    for i in range(7):
        here.notice(f"s{i}", confidence=REPORTED, source="agent", seen_at=here.now - i)
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["s6"]


def test_a_node_that_drains_for_a_report_leaves_no_room_for_another_however_its_reports_change() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    here.notice("s0", confidence=REPORTED, source="agent", seen_at=here.now - 10.0)
    here.drain("s0", Cause.NOTICE)
    here.notice("s0", 5.0, id="newer", confidence=REPORTED, source="agent", seen_at=here.now)
    here.notice("s1", confidence=REPORTED, source="agent", seen_at=here.now - 60.0)
    assert set(noticed(here.pool, here.world, here.memory)) == {"s0"}
    assert {a.node for a in of_kind(here.plan(), Drain | Undrain)} == {"s0"}  # sooner than before


@pytest.mark.parametrize("silent", [False, True])
def test_a_node_that_drains_for_a_report_which_a_flood_pushed_out_leaves_no_room_either(silent: bool) -> None:
    here = Scene(Pool(name="p", replicas=6)).nodes(5, Market.ON_DEMAND)
    here.node("x", Market.ON_DEMAND, silent_for=10.0 if silent else None)
    here.drain("x", Cause.NOTICE)
    here.notice("x", confidence=REPORTED, source="agent")  # an interruption takes no on-demand node
    kind = NoticeKind.MAINTENANCE
    here.notice("o1", 5.0, kind=kind, confidence=REPORTED, source="agent")
    assert [a.node for a in of_kind(here.plan(), Drain)] == (["o1"] if silent else [])


def test_the_oldest_report_of_a_node_tells_its_turn() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    here.notice("s0", confidence=REPORTED, source="agent", seen_at=here.now - 10.0)
    here.notice("s0", 5.0, id="newer", confidence=REPORTED, source="agent", seen_at=here.now)
    here.notice("s1", confidence=REPORTED, source="agent", seen_at=here.now - 5.0)
    assert set(noticed(here.pool, here.world, here.memory)) == {"s0"}


@pytest.mark.parametrize(("confidence", "room"), [(REPORTED, False), (Confidence.CONFIRMED, True)])
def test_a_report_of_a_node_that_drains_by_choice_makes_no_room_for_another(
    confidence: Confidence, room: bool
) -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(8).nodes(3, Market.ON_DEMAND)
    here.drain("s0", Cause.OPERATOR)
    here.notice("s0", confidence=confidence, source="agent")
    assert here.turn().may_choose() is room


def test_what_the_cloud_confirms_is_believed_without_limit_and_uses_no_budget() -> None:
    here = Scene(Pool(name="p", replicas=10)).nodes(7).nodes(3, Market.ON_DEMAND)
    for i in range(5):
        here.notice(f"s{i}", 120.0 + i)
    here.notice("s5", confidence=REPORTED, source="agent")
    assert set(noticed(here.pool, here.world, here.memory)) == {"s0", "s1", "s2", "s3", "s4", "s5"}
    assert len(of_kind(here.plan(), Launch)) >= 6


def test_a_reported_standby_is_not_believed_beyond_the_budget_because_it_is_stopped() -> None:
    here = Scene().nodes(4).node("x", Market.ON_DEMAND, silent_for=60.0, standby=StandbyKind.STOPPED)
    for node in ("s0", "x"):
        here.notice(node, confidence=REPORTED, source="agent")
    assert set(noticed(here.pool, here.world, here.memory)) == {"s0"}


@pytest.mark.parametrize(("silent_for", "believed"), [(5.0, {"s0", "s1", "s3"}), (4.9, {"s0"})])
def test_a_reported_node_that_nobody_can_reach_is_believed_beyond_the_budget(
    silent_for: float, believed: set[str]
) -> None:
    """One look that failed is no silence."""
    here = Scene().nodes(10).node("s1", silent_for=silent_for).node("s3", silent_for=silent_for)
    for i in range(4):
        here.notice(f"s{i}", confidence=REPORTED, source="agent")
    assert set(noticed(here.pool, here.world, here.memory)) == believed


def test_copies_from_two_sources_make_one_drain() -> None:
    here = Scene().nodes(4)
    here.notice("s0")
    here.notice("s0", source="metadata", confidence=REPORTED, id="other")
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["s0"]
    assert len(of_kind(here.plan(), Launch)) == 2  # the floor of two, and nothing for the second copy


def test_a_doomed_node_that_drains_is_not_drained_again() -> None:
    here = Scene().nodes(4)
    here.notice("s0")
    here.drain("s0", Cause.NOTICE)
    assert of_kind(here.plan(), Drain) == []


def test_a_cancelled_notice_puts_its_node_back_to_work() -> None:
    here = Scene().nodes(4)
    here.notice("s0", cancelled=True)
    here.drain("s0", Cause.NOTICE)
    plan = here.plan()
    assert [a.node for a in of_kind(plan, Undrain)] == ["s0"]
    assert {t.id: str(t.phase) for t in plan.targets}["s0"] == "active"


def test_a_cancelled_notice_helps_no_node_that_has_fallen_silent() -> None:
    here = Scene().nodes(4).node("s0", silent_for=8.0, target=None, serving=False)
    here.notice("s0", cancelled=True)
    here.drain("s0", Cause.NOTICE)
    assert of_kind(here.plan(), Undrain) == []


def test_notices_for_nodes_nobody_knows_do_nothing() -> None:
    here = Scene().nodes(4)
    plan = here.plan()
    here.fields["early_notices"] = {"stranger": (said(node="stranger"),)}
    assert here.plan() == plan


# -- what is kept of them ------------------------------------------------------------------------------


def test_a_copy_says_nothing_new_and_another_deadline_does() -> None:
    known = (said(seen_at=5.0),)
    assert add_notice(known, said(seen_at=9.0)) is known
    (changed,) = add_notice(known, said(seen_at=9.0, deadline=30.0))
    assert (changed.deadline, changed.seen_at) == (30.0, 5.0)


def test_a_copy_that_comes_after_the_cancellation_revives_nothing() -> None:
    known = add_notice((said(),), said(cancelled=True))
    assert add_notice(known, said()) is known
    early = add_notice((), said(cancelled=True))
    assert add_notice(early, said()) is early


def test_a_report_neither_cancels_nor_moves_what_the_cloud_said() -> None:
    known = (said(),)
    assert add_notice(known, said(confidence=REPORTED, cancelled=True)) is known
    assert add_notice(known, said(confidence=REPORTED, deadline=1.0)) is known
    (raised,) = add_notice((said(confidence=REPORTED),), said())
    assert raised.confidence is Confidence.CONFIRMED


@pytest.mark.parametrize("deadline", [float("inf"), float("-inf"), float("nan")])
def test_a_deadline_that_is_no_time_counts_as_none(deadline: float) -> None:
    assert add_notice((), said(deadline=deadline))[0].deadline is None


def test_a_flood_of_reports_pushes_out_reports() -> None:
    known: tuple[Notice, ...] = (said(id="sure"),)
    for i in range(100):
        known = add_notice(known, said(id=f"forged{i}", confidence=REPORTED, source="agent"))
    assert len(known) == NOTICES_KEPT
    assert known[0].id == "sure"


@pytest.mark.parametrize("confidence", list(Confidence))
def test_what_was_taken_back_pushes_out_nothing_that_stands(confidence: Confidence) -> None:
    known: tuple[Notice, ...] = (said(id="stands", confidence=confidence),)
    for i in range(100):
        known = add_notice(add_notice(known, said(id=f"{i}")), said(id=f"{i}", cancelled=True))
    assert len(known) == NOTICES_KEPT
    assert [n.id for n in known if not n.cancelled] == ["stands"]


def first_seen(place: Any, *, at: float) -> NodeSeen:
    return NodeSeen(
        at=at,
        node="new",
        token="t",
        placement=place,
        launched_at=1.0,
        price=1.0,
        address="",
        standby=None,
    )


@pytest.mark.parametrize(("ended", "meanwhile"), [(False, None), (False, "taken back"), (True, None)])
def test_a_drain_that_was_asked_for_holds_when_lists_show_its_node_again(
    ended: bool, meanwhile: str | None
) -> None:
    asked = OperatorDrained(at=2.0, node="new", budget=20.0, reason="a new driver")
    memory = reduce(Memory(), first_seen(place("a"), at=1.0), asked)
    memory = reduce(memory, NodeGone(at=20.0, node="new", cause=GoneCause.LOST, ended=ended))
    if meanwhile is not None:
        memory = reduce(memory, OperatorUndrained(at=30.0, node="new", reason="done"))
    memory = reduce(memory, first_seen(place("a"), at=40.0))
    request = memory.nodes["new"].operator
    assert (request is not None and request.since == 2.0) is not (ended or meanwhile is not None)
    assert memory.early_requests == {}


def test_drains_that_were_asked_for_are_kept_of_so_many_nodes_that_lists_lack() -> None:
    memory = Memory()
    for i in range(300):
        node = f"n{i}"
        memory = reduce(
            memory,
            replace(first_seen(place("a"), at=1.0), node=node),
            OperatorDrained(at=2.0, node=node, budget=20.0, reason="all of them"),
            NodeGone(at=20.0, node=node, cause=GoneCause.LOST),
        )
    assert list(memory.early_requests) == [f"n{i}" for i in range(44, 300)]


@pytest.mark.parametrize("missed", [True, False])
def test_the_notice_of_a_node_that_was_given_up_for_gone_holds_when_lists_show_it_again(missed: bool) -> None:
    """One that a list showed ended does not come back."""
    memory = reduce(Memory(), first_seen(place("a"), at=1.0), NoticeSeen(at=2.0, notice=said(node="new")))
    memory = reduce(memory, NodeGone(at=20.0, node="new", cause=GoneCause.RECLAIMED, ended=not missed))
    assert ("new" in memory.early_notices) is missed
    memory = reduce(memory, first_seen(place("a"), at=40.0))
    assert [(n.id, n.seen_at) for n in memory.nodes["new"].notices] == ([("n1", 0.0)] if missed else [])


@pytest.mark.parametrize("ours", [REPORTED, Confidence.CONFIRMED])
def test_a_notice_that_is_quicker_than_the_list_is_kept_for_its_node(ours: Confidence) -> None:
    """Neither forged reports push out the cloud's word, nor what it says of others' nodes a report."""
    strangers = Confidence.CONFIRMED if ours is REPORTED else REPORTED
    memory = Memory()
    for i in range(1000):
        if i == 500:
            memory = reduce(memory, NoticeSeen(at=1.0, notice=said(node="new", confidence=ours)))
        memory = reduce(memory, NoticeSeen(at=1.0, notice=said(node=f"x{i}", confidence=strangers)))
    memory = reduce(memory, first_seen(place("a"), at=3.0))
    assert [n.id for n in memory.nodes["new"].notices] == ["n1"]
    assert "new" not in memory.early_notices
    assert len(memory.early_notices) <= 256


def test_a_doomed_node_that_never_served_ends_at_once() -> None:
    here = Scene().nodes(4).node("new", ready=False, age=30.0)
    here.notice("new")
    assert [a.node for a in of_kind(here.plan(), Drain)] == ["new"]
    here.drain("new", Cause.NOTICE)
    del here.held["new"]
    assert [a.node for a in of_kind(here.plan(), Terminate)] == ["new"]
