"""What the loop counts: each event once, two nodes of different fates apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.loop import counters as module
from orchestrator.loop.counters import PoolCounters
from orchestrator.metrics import metrics
from policies.actions import Cause
from policies.adapter_events import AdapterAnswered, AdapterLost
from policies.events import (
    BootFailed,
    Event,
    GoneCause,
    NodeGone,
    NodeIdle,
    NodeReady,
    NoticeSeen,
    TargetsApplied,
)
from policies.memory import Memory
from policies.model import Confidence, Market, Notice, NoticeKind, Placement, TargetPhase
from policies.records import DrainRecord, NodeRecord, StartMeasured, Swap
from policies.value import replace

ACTIVE, DRAINING = TargetPhase.ACTIVE, TargetPhase.DRAINING
SPOT, ON_DEMAND = (Placement("sim", "r", "a", "gpu", market) for market in Market)
_POOLS = itertools.count()


class Counted:
    """Counters of a pool of its own, and what it counted."""

    def __init__(self) -> None:
        self.pool = f"counters-{next(_POOLS)}"
        self.counters = PoolCounters(self.pool)

    def __call__(self, name: str, **labels: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(f"orchestrator_{name}", {"pool": self.pool, **labels})

    def events(self, *events: Event, before: Memory | None = None, after: Memory | None = None) -> None:
        before = Memory() if before is None else before
        self.counters.events(events, before, before if after is None else after)

    def notice(
        self, node: str, *, at: float = 100.0, known: bool = True, first: bool = True, **more: Any
    ) -> None:
        self.counters.notice(notice(node, at=at, **more), known=known, first=first)

    def detach(self, at: float, *changes: tuple[str, TargetPhase | None], swaps: str = "ab") -> None:
        memory = Memory(
            swaps={node: Swap(outgoing=node, cause=Cause.NOTICE, opened_at=0.0) for node in swaps}
        )
        self.counters.detached(TargetsApplied(at=at, balancer="gw", generation=1, changes=changes), memory)


@pytest.fixture
def counted() -> Iterator[Counted]:
    return Counted()


def notice(node: str, *, at: float = 100.0, **more: Any) -> NoticeSeen:
    fields: dict[str, Any] = {"kind": NoticeKind.INTERRUPTION, "deadline": 220.0, "source": "feed", **more}
    said = Notice(id="1", node=node, confidence=Confidence.CONFIRMED, seen_at=at, **fields)
    return NoticeSeen(at=at, notice=said)


def node(name: str, placement: Placement = SPOT, **more: Any) -> NodeRecord:
    fields: dict[str, Any] = {"launched_at": 10.0, "started_at": 10.0, "price": 1.0, **more}
    return NodeRecord(id=name, token=f"t-{name}", placement=placement, **fields)


def memory(*nodes: NodeRecord, **more: Any) -> Memory:
    return Memory(nodes={each.id: each for each in nodes}, **more)


def drain(since: float) -> DrainRecord:
    return DrainRecord(since=since, deadline=since + 60.0, cause=Cause.NOTICE, reason="")


# -- notices ------------------------------------------------------------------------------------------------


def test_notices_are_counted_by_kind_and_source_and_those_of_nobody_apart(counted: Counted) -> None:
    counted.notice("a")
    counted.notice("a", first=False)
    counted.notice("b", known=False, source="other")
    counted.notice("c", kind=NoticeKind.REBALANCE)
    told = {
        (kind, source): counted("notices_total", kind=kind, source=source)
        for kind in ("interruption", "rebalance")
        for source in ("feed", "other")
    }
    assert told == {
        ("interruption", "feed"): 2.0,
        ("interruption", "other"): 1.0,
        ("rebalance", "feed"): 1.0,
        ("rebalance", "other"): None,
    }
    assert counted("notices_unknown_node_total") == 1.0


@pytest.mark.parametrize(
    ("more", "observed"),
    [
        ({"deadline": 220.0}, (1.0, 120.0)),
        ({"deadline": 90.0}, (1.0, 0.0)),  # it is over as the notice comes
        ({"deadline": None}, (None, None)),
        ({"deadline": 220.0, "cancelled": True}, (None, None)),
    ],
)
def test_the_lead_of_a_notice_is_never_below_nothing(
    counted: Counted, more: dict[str, Any], observed: tuple[float | None, float | None]
) -> None:
    counted.notice("a", **more)
    found = [counted(f"notice_lead_seconds_{part}", source="feed") for part in ("count", "sum")]
    assert tuple(found) == observed


# -- detachments --------------------------------------------------------------------------------------------


def detachments(counted: Counted) -> tuple[float | None, float | None]:
    return counted("notice_to_detached_seconds_count"), counted("notice_to_detached_seconds_sum")


def test_of_a_set_only_the_noticed_nodes_that_leave_are_measured(counted: Counted) -> None:
    """Before each of them in the set stands one that is not to be measured."""
    counted.notice("a", at=100.0)
    counted.notice("b", at=101.0)
    counted.notice("stays", at=50.0)
    counted.notice("no swap", at=51.0)
    counted.detach(
        103.0, ("stays", ACTIVE), ("nobody", DRAINING), ("a", DRAINING), ("no swap", DRAINING), ("b", None)
    )
    assert detachments(counted) == (2.0, 5.0)
    counted.detach(110.0, ("a", None), ("b", None))
    assert detachments(counted) == (2.0, 5.0), "each once"


def test_the_detachment_runs_from_the_first_notice_that_takes_the_node_away(counted: Counted) -> None:
    counted.notice("a", at=90.0, kind=NoticeKind.REBALANCE)
    counted.notice("a", at=100.0)
    counted.notice("a", at=102.0, first=False)
    counted.detach(107.0, ("a", DRAINING))
    assert detachments(counted) == (1.0, 7.0)


def test_a_node_that_was_kept_by_choice_is_late_and_its_neighbour_measured(counted: Counted) -> None:
    counted.notice("a")
    counted.notice("b")
    assert counted.counters.newly_held(["a", "not noticed"]) == ["a"]
    assert counted.counters.newly_held(["a", "b"]) == ["b"], "each is told of once"
    counted = Counted()
    counted.notice("a")
    counted.notice("b")
    assert counted.counters.newly_held(["a"]) == ["a"]
    counted.detach(104.0, ("a", DRAINING), ("b", DRAINING))
    assert counted("late_drains_total") == 1.0
    assert detachments(counted) == (1.0, 4.0)
    counted.notice("a", at=200.0)
    counted.detach(203.0, ("a", DRAINING))
    assert counted("late_drains_total") == 1.0, "the next notice of a node of this name is another"
    assert detachments(counted) == (2.0, 7.0)


def test_a_node_that_is_gone_is_forgotten_with_what_was_held(counted: Counted) -> None:
    counted.notice("a")
    counted.notice("b")
    counted.counters.newly_held(["a", "b"])
    counted.events(NodeGone(at=110.0, node="a", cause=GoneCause.RECLAIMED))
    counted.detach(111.0, ("a", None), ("b", DRAINING))
    assert counted("late_drains_total") == 1.0
    assert detachments(counted)[0] == 0.0


def test_forged_names_do_not_pile_up(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ARRIVALS_KEPT", 2)
    for name in ("a", "b", "forged"):
        counted.notice(name)
    counted.detach(101.0, ("a", DRAINING), ("b", DRAINING))
    assert detachments(counted) == (1.0, 1.0), "the oldest made room"


# -- what becomes of nodes ----------------------------------------------------------------------------------


def test_a_drain_is_cut_where_requests_were_left(counted: Counted) -> None:
    """Four nodes go in one turn; only one of them was draining, ready and busy."""
    before = memory(
        node("no drain", ready_at=20.0),
        node("never ready", drain=drain(50.0)),
        node("idle", ready_at=20.0, drain=drain(50.0), idle_since=55.0),
        node("busy", ready_at=20.0, drain=drain(50.0)),
    )
    names = ("unknown", "no drain", "never ready", "idle", "busy")
    counted.events(
        *(NodeGone(at=60.0, node=name, cause=GoneCause.RECLAIMED) for name in names),
        before=before,
        after=Memory(),
    )
    assert counted("drains_cut_total") == 1.0


def test_boots_and_drains_are_timed_from_their_beginnings(counted: Counted) -> None:
    known = memory(
        node("spot"),
        node("standby", ON_DEMAND, started_at=70.0),
        node("not draining"),
        node("at once", drain=drain(100.0)),
        node("late", drain=drain(100.0), detached_at=103.0),
        node("before", drain=drain(100.0), detached_at=90.0),
    )
    counted.events(
        NodeReady(at=99.0, node="gone", address=""),
        NodeReady(at=100.0, node="spot", address=""),
        NodeReady(at=100.0, node="standby", address=""),
        *(NodeIdle(at=110.0, node=name) for name in ("gone", "not draining", "at once", "late", "before")),
        before=known,
    )
    boots = {m: counted("boot_seconds_sum", market=str(m)) for m in Market}
    assert boots == {Market.SPOT: 90.0, Market.ON_DEMAND: 30.0}
    assert counted("drain_seconds_count") == 3.0
    assert counted("drain_seconds_sum") == 10.0 + 7.0 + 10.0


def test_each_call_on_an_engine_and_each_part_of_a_start_has_its_series(counted: Counted) -> None:
    def answered(load: bool, failure: str) -> AdapterAnswered:
        return AdapterAnswered(at=1.0, node="a", adapter="x", load=load, failure=failure)

    counted.events(
        answered(True, ""),
        answered(True, ""),
        answered(True, "no"),
        answered(False, ""),
        AdapterLost(at=1.0, node="a", adapter="x"),
        BootFailed(at=1.0, node="c", placement=ON_DEMAND, why="w"),
        StartMeasured(
            at=1.0,
            node="a",
            placement=SPOT,
            standby=False,
            began_at=0.0,
            seconds=9.0,
            parts=(("load", 4.0), ("route", 2.0)),
        ),
    )
    calls = {
        (call, outcome): counted("adapter_calls_total", call=call, outcome=outcome)
        for call in ("load", "unload")
        for outcome in ("done", "failed")
    }
    assert calls == {
        ("load", "done"): 2.0,
        ("load", "failed"): 1.0,
        ("unload", "done"): 1.0,
        ("unload", "failed"): None,
    }
    assert counted("adapters_lost_total") == 1.0
    failed = {m: counted("boots_failed_total", market=str(m)) for m in Market}
    assert failed == {Market.SPOT: 0.0, Market.ON_DEMAND: 1.0}
    parts = {part: counted("start_part_seconds_sum", part=part) for part in ("load", "route")}
    assert parts == {"load": 4.0, "route": 2.0}


def test_preemptions_with_and_without_a_notice_add_up(counted: Counted) -> None:
    before = replace(Memory(), preemptions=7, preemptions_without_notice=2)
    counted.events(before=before, after=replace(before, preemptions=12, preemptions_without_notice=4))
    assert counted("preemptions_total", noticed="yes") == 3.0
    assert counted("preemptions_total", noticed="no") == 2.0
    counted.events(before=before)
    assert counted("preemptions_total", noticed="yes") == 3.0


# -- swaps --------------------------------------------------------------------------------------------------


def swap(outgoing: str, **more: Any) -> Swap:
    return Swap(outgoing=outgoing, cause=Cause.NOTICE, opened_at=100.0, **more)


def test_each_stage_of_each_swap_is_timed_once(counted: Counted) -> None:
    a, b = swap("a", detached_at=101.0), swap("b")
    steps = [
        {"a": a, "b": b},
        {"a": replace(a, drained_at=110.0), "b": replace(b, detached_at=99.0)},  # by another clock
        {"a": replace(a, drained_at=110.0, replaced_at=150.0), "b": replace(b, detached_at=99.0)},
    ]
    before = Memory()
    for step in steps:
        after = Memory(swaps=step)
        counted.events(before=before, after=after)
        before = after
    times = {
        stage: (counted("swap_seconds_count", stage=stage), counted("swap_seconds_sum", stage=stage))
        for stage in ("detached", "drained", "replaced")
    }
    assert times == {"detached": (2.0, 1.0), "drained": (1.0, 10.0), "replaced": (1.0, 50.0)}


@pytest.mark.parametrize(
    ("first", "then", "failed"),
    [
        ("x", "", 1.0),  # it does not come
        ("x", "y", 0.0),  # another takes its place
        ("x", "x", 0.0),
        ("", "", 0.0),
        ("", "x", 0.0),
    ],
)
def test_a_replacement_that_does_not_come_fails_and_one_that_helps_another_does_not(
    counted: Counted, first: str, then: str, failed: float
) -> None:
    before = Memory(swaps={"a": swap("a", incoming=first), "b": swap("b")})
    counted.events(
        before=before, after=Memory(swaps={"a": swap("a", incoming=then, gone_at=1.0), "b": swap("b")})
    )
    assert counted("swap_failures_total") == failed
    moved = Memory(
        swaps={"a": swap("a", incoming=then, gone_at=2.0), "b": swap("b", incoming=first)},
        incoming={first: "b"},
    )
    counted = Counted()
    counted.events(before=before, after=moved)
    assert counted("swap_failures_total") == 0.0, "it replaces the other now"
