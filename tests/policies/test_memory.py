"""How each event changes what is remembered."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import event_text
from policies import memory as reducing
from policies.actions import ActionKind, Cause
from policies.call_memory import ATTEMPTS
from policies.events import (
    AlarmRaised,
    ConfigRejected,
    DaemonStarted,
    DrainEnded,
    DrainHeld,
    DrainStarted,
    Event,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeSeen,
    NodeStopped,
    NoticeSeen,
    OperatorDrained,
    OperatorUndrained,
    Outcome,
    PartBack,
    PartLost,
    Paused,
    PoolConfigured,
    PoolRemoved,
    PoolWhole,
    Resumed,
    TargetsApplied,
)
from policies.memory import Memory, decayed, intent_key, reduce, replay
from policies.memory_builder import SWAPS_KEPT
from policies.model import (
    Confidence,
    Market,
    Notice,
    NoticeKind,
    PartKind,
    Placement,
    StandbyKind,
    TargetPhase,
)
from policies.records import Intent

SPOT = Placement("toy", "r", "a", "gpu", Market.SPOT)
ON_DEMAND = Placement("toy", "r", "a", "gpu", Market.ON_DEMAND)
ACTIVE, DRAINING = TargetPhase.ACTIVE, TargetPhase.DRAINING


def seen(node: str = "n", *, at: float = 10.0, placement: Placement = SPOT, **more: Any) -> NodeSeen:
    return NodeSeen(
        **{
            "at": at,
            "node": node,
            "token": f"t-{node}",
            "placement": placement,
            "launched_at": at - 5.0,
            "price": 1.0,
            "address": "",
            "standby": None,
            **more,
        }
    )


def opened(intent: str = "t-n", *, at: float = 5.0, **more: Any) -> IntentOpened:
    return IntentOpened(
        **{
            "at": at,
            "token": intent,
            "kind": ActionKind.LAUNCH,
            "node": "",
            "placement": SPOT,
            "cause": Cause.SHORT,
            **more,
        }
    )


def closed(outcome: Outcome, intent: str = "t-n", *, at: float = 6.0, **more: Any) -> IntentClosed:
    return IntentClosed(at=at, token=intent, outcome=outcome, **more)


def ending(node: str = "n", *, at: float = 50.0, cause: Cause = Cause.EXCESS) -> IntentOpened:
    token = intent_key(node, ActionKind.TERMINATE)
    return IntentOpened(at=at, token=token, kind=ActionKind.TERMINATE, node=node, cause=cause)


def notice(node: str = "n", *, at: float = 20.0, **more: Any) -> NoticeSeen:
    said = Notice(
        **{
            "id": "n1",
            "kind": NoticeKind.INTERRUPTION,
            "node": node,
            "deadline": at + 120.0,
            "source": "feed",
            "confidence": Confidence.CONFIRMED,
            "seen_at": at,
            **more,
        }
    )
    return NoticeSeen(at=at, notice=said)


def gone(node: str = "n", cause: GoneCause = GoneCause.RECLAIMED, *, at: float = 90.0) -> NodeGone:
    return NodeGone(at=at, node=node, cause=cause)


def applied(
    changes: dict[str, TargetPhase | None], *, at: float = 30.0, balancer: str = "gw"
) -> TargetsApplied:
    return TargetsApplied(at=at, balancer=balancer, generation=1, changes=tuple(changes.items()))


def drain(
    node: str = "n", *, at: float = 25.0, cause: Cause = Cause.NOTICE, deadline: float = 99.0
) -> DrainStarted:
    return DrainStarted(at=at, node=node, deadline=deadline, cause=cause, reason="because")


def test_every_event_has_a_reducer() -> None:
    assert set(reducing._REDUCERS) == set(get_args(Event))


def test_every_event_has_one_text() -> None:
    kinds = [*event_text._TEXTS, *event_text._WORDS]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == set(get_args(Event))


@pytest.mark.parametrize(
    "event",
    [
        NodeReady(at=1.0, node="x", address=""),
        NodeStopped(at=1.0, node="x"),
        NodeMissing(at=1.0, node="x"),
        NodeFound(at=1.0, node="x"),
        NodeIdle(at=1.0, node="x"),
        NodeBusy(at=1.0, node="x"),
        gone("x"),
        drain("x"),
        DrainEnded(at=1.0, node="x", reason=""),
        DrainHeld(at=1.0, node="x", reason=""),
        OperatorDrained(at=1.0, node="x", budget=1.0, reason=""),
        OperatorUndrained(at=1.0, node="x", reason=""),
        closed(Outcome.DONE, "x"),
        AlarmRaised(at=1.0, name="x", text=""),
        ConfigRejected(at=1.0, problems=("x",)),
        PartLost(at=1.0, kind=PartKind.ENGINE, part="x", since=1.0, error=""),
        PartBack(at=1.0, kind=PartKind.ENGINE, part="x", after=1.0),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_concerns_nobody_we_know_changes_nothing(event: Event) -> None:
    before = replay([seen("n"), opened("t-2")])
    assert reduce(before, event) == before


# -- a node's life -------------------------------------------------------------------------------------


def test_a_launched_node_boots_from_its_launch_and_an_adopted_one_from_now() -> None:
    assert replay([opened(), seen(at=10.0)]).nodes["n"].started_at == 5.0
    assert replay([seen(at=10.0)]).nodes["n"].started_at == 10.0


def test_a_described_launch_is_no_longer_open() -> None:
    memory = replay([opened(), seen()])
    assert memory.intents == {}
    assert reduce(memory, closed(Outcome.DONE, node="n")) == memory  # the answer may come after the list


def test_ready_and_stopped() -> None:
    memory = replay([seen(), NodeReady(at=40.0, node="n", address="n:1")])
    assert (memory.nodes["n"].ready_at, memory.nodes["n"].address) == (40.0, "n:1")
    assert reduce(memory, NodeStopped(at=50.0, node="n")).nodes["n"].ready_at is None


def test_missing_and_found() -> None:
    memory = replay([seen(), NodeMissing(at=40.0, node="n")])
    assert memory.nodes["n"].missing_since == 40.0
    assert reduce(memory, NodeFound(at=41.0, node="n")).nodes["n"].missing_since is None


def test_a_start_puts_a_standby_to_work_and_its_boot_begins_anew() -> None:
    standby = seen(standby=StandbyKind.STOPPED, placement=ON_DEMAND)
    start = opened("n:start", at=70.0, kind=ActionKind.START, node="n", placement=None)
    record = replay([standby, start]).nodes["n"]
    assert (record.standby, record.started_at, record.ready_at) == (None, 70.0, None)
    memory = replay([standby, start, NodeReady(at=90.0, node="n", address="n:1")])
    assert memory.intents == {}


@pytest.mark.parametrize(
    ("cause", "preemptions", "without"),
    [
        (GoneCause.RECLAIMED, 1, 0),
        (GoneCause.UNANNOUNCED, 1, 1),
        (GoneCause.TERMINATED, 0, 0),
        (GoneCause.LOST, 0, 0),
    ],
)
def test_preemptions_are_counted(cause: GoneCause, preemptions: int, without: int) -> None:
    memory = replay([seen(), ending(), gone(cause=cause)])
    assert (memory.preemptions, memory.preemptions_without_notice) == (preemptions, without)
    assert memory.nodes == {}
    assert memory.intents == {}  # no call on a node outlives it


def test_what_a_node_says_of_an_end_that_we_asked_for_is_no_reclaim() -> None:
    last_word = notice(at=60.0, confidence=Confidence.REPORTED)
    memory = replay([seen(), ending(), last_word])
    assert (memory.nodes["n"].notices, memory.reclaims) == ((), {})
    assert replay([seen(), last_word]).reclaims.keys() == {SPOT}  # nobody here asked for it
    assert replay([seen(), ending(), notice(at=60.0)]).reclaims.keys() == {SPOT}  # the cloud's own word


def test_that_machines_have_ended_is_remembered_for_an_hour_and_of_so_many() -> None:
    first = replace(gone(at=90.0), ended=True)
    memory = replay([seen(), first])
    assert memory.ended == {"n": 90.0}
    for at, known in ((3689.0, ["n", "m"]), (3690.0, ["m"])):
        later = replace(gone("m", at=at), ended=True)
        assert list(reduce(memory, seen("m"), later).ended) == known
    for i in range(1500):
        memory = reduce(memory, seen(f"n{i}"), replace(gone(f"n{i}"), ended=True))
    assert list(memory.ended) == [f"n{i}" for i in range(476, 1500)]


def test_boots_that_fail_are_counted_in_a_row() -> None:
    history: list[Event] = []
    for i in range(3):
        history += [seen(f"n{i}"), ending(f"n{i}", cause=Cause.BOOT), gone(f"n{i}", GoneCause.TERMINATED)]
    memory = replay(history)
    assert memory.boot_failures[SPOT].weight == 3.0
    assert SPOT not in reduce(memory, seen("ok"), NodeReady(at=99.0, node="ok", address="")).boot_failures


def test_a_machine_that_died_at_once_is_a_failed_boot() -> None:
    assert replay([opened(), closed(Outcome.DIED)]).boot_failures[SPOT].weight == 1.0
    lost = replay([seen(placement=ON_DEMAND), gone(cause=GoneCause.LOST)])
    assert lost.boot_failures[ON_DEMAND].weight == 1.0
    served = [seen(placement=ON_DEMAND), NodeReady(at=20.0, node="n", address=""), gone(cause=GoneCause.LOST)]
    assert not replay(served).boot_failures


# -- intents -------------------------------------------------------------------------------------------


def test_a_serial_and_a_launch_time_for_each_new_token() -> None:
    memory = replay([opened("a", at=1.0), opened("b", at=2.0), opened("a", at=3.0)])
    assert memory.serial == 2
    assert memory.launches == (1.0, 2.0)
    assert memory.intents["a"].attempts == 2
    assert (memory.intents["a"].at, memory.intents["a"].asked_at) == (1.0, 3.0)
    later = reduce(memory, opened("c", at=61.5))
    assert later.launches == (2.0, 61.5)


def test_done_stays_open_until_its_instance_is_described() -> None:
    memory = replay([opened(), closed(Outcome.UNCERTAIN), closed(Outcome.DONE, node="n", at=7.0)])
    intent = memory.intents["t-n"]
    assert (intent.node, intent.accepted_at, intent.unanswered) == ("n", 7.0, False)


@pytest.mark.parametrize("outcome", [Outcome.UNCERTAIN, Outcome.FAILED])
def test_without_an_answer_it_is_asked_again(outcome: Outcome) -> None:
    memory = replay([opened(), closed(outcome)])
    assert memory.intents["t-n"].unanswered
    assert not memory.refusals


def test_what_surely_failed_is_given_up_after_some_tries_and_what_is_uncertain_never() -> None:
    def tries(outcome: Outcome, count: int) -> Memory:
        return replay([event for _ in range(count) for event in (opened(), closed(outcome))])

    assert "t-n" in tries(Outcome.FAILED, ATTEMPTS - 1).intents
    assert "t-n" not in tries(Outcome.FAILED, ATTEMPTS).intents
    assert SPOT in tries(Outcome.FAILED, ATTEMPTS).refusals
    assert "t-n" in tries(Outcome.UNCERTAIN, 100).intents


@pytest.mark.parametrize(
    "first", [closed(Outcome.DONE, node="n"), closed(Outcome.UNCERTAIN), DaemonStarted(at=7.0, epoch=2)]
)
def test_a_launch_that_may_have_landed_is_not_given_up_when_later_calls_fail(first: Event) -> None:
    failed = [event for _ in range(2 * ATTEMPTS) for event in (opened(), closed(Outcome.FAILED))]
    memory = replay([opened(), first, *failed])
    assert memory.intents["t-n"].unanswered
    assert not memory.refusals
    assert "t-n" not in reduce(memory, opened(), closed(Outcome.REFUSED)).intents


@pytest.mark.parametrize(
    ("attempts", "unanswered", "waited", "due"),
    [
        (1, True, 0.9, False),
        (1, True, 1.0, True),
        (4, True, 7.9, False),
        (4, True, 8.0, True),
        (9, True, 59.9, False),
        (9, True, 60.0, True),
        (10**6, True, 60.0, True),
        (1, False, 59.9, False),
        (1, False, 60.0, True),
    ],
)
def test_the_wait_between_askings(attempts: int, unanswered: bool, waited: float, due: bool) -> None:
    intent = Intent(
        token="t",
        kind=ActionKind.LAUNCH,
        node="",
        at=0.0,
        asked_at=0.0,
        attempts=attempts,
        unanswered=unanswered,
    )
    assert intent.due(waited, 60.0) is due


def test_refusals_weigh_more_in_a_row_and_at_once_count_once() -> None:
    def refused(*times: float) -> float:
        history = [e for t in times for e in (opened(f"t{t}", at=t), closed(Outcome.REFUSED, f"t{t}", at=t))]
        return replay(history).refusals[SPOT].weight

    assert refused(10.0) == 1.0
    assert refused(10.0, 10.5, 11.0, 15.0) == 1.0
    assert refused(10.0, 1810.0) == pytest.approx(1.5)


def test_a_quota_is_remembered_by_itself() -> None:
    memory = replay([opened(), closed(Outcome.QUOTA, at=8.0)])
    assert memory.quota_at == {SPOT: 8.0}
    assert not memory.refusals


def test_bad_news_decays() -> None:
    memory = replay([seen(), notice(at=0.0)])
    assert decayed(memory.reclaims[SPOT], 600.0, 600.0) == 0.5
    assert decayed(memory.reclaims[SPOT], -5.0, 600.0) == 1.0  # clocks differ


@pytest.mark.parametrize(
    "event",
    [
        notice(kind=NoticeKind.REBALANCE, deadline=None),
        notice(kind=NoticeKind.MAINTENANCE),
        notice(cancelled=True),
    ],
)
def test_only_interruptions_are_reclaims(event: NoticeSeen) -> None:
    assert not replay([seen(), event]).reclaims


def test_an_interruption_that_follows_other_news_is_a_reclaim_and_one_of_on_demand_is_none() -> None:
    first = notice(kind=NoticeKind.REBALANCE, deadline=None, id="r")
    assert SPOT in replay([seen(), first, notice()]).reclaims
    assert not replay([seen(placement=ON_DEMAND), notice()]).reclaims


def test_a_new_daemon_asks_again_what_was_not_answered_and_writes_every_set() -> None:
    history: list[Event] = [
        opened("asked"),
        opened("accepted"),
        closed(Outcome.DONE, "accepted", node="n"),
        applied({"n": ACTIVE}),
    ]
    memory = replay([*history, DaemonStarted(at=60.0, epoch=9)])
    assert memory.epoch == 9
    assert memory.intents["asked"].unanswered
    assert not memory.intents["accepted"].unanswered
    assert memory.targets == {"gw": {"n": ACTIVE}}  # still the best guess
    assert memory.applied_at == {}
    assert replay([DaemonStarted(at=1.0, epoch=9), DaemonStarted(at=2.0, epoch=5)]).epoch == 9


# -- the pool ------------------------------------------------------------------------------------------


def test_whole_until_the_wanted_number_changes() -> None:
    memory = replay([PoolConfigured(at=1.0, replicas=4), PoolWhole(at=2.0)])
    assert reduce(memory, PoolConfigured(at=3.0, replicas=4)).whole_at == 2.0
    assert reduce(memory, PoolConfigured(at=3.0, replicas=5)).whole_at is None


def test_since_when_spot_is_lost() -> None:
    def lost_at(*events: Event) -> float | None:
        return replay(events).spot_lost_at

    one, two = (
        [seen("a"), NodeReady(at=20.0, node="a", address="a:1")],
        [seen("b"), NodeReady(at=21.0, node="b", address="b:1")],
    )
    assert lost_at(*one, *two, drain("a", at=30.0), gone("a", at=40.0)) is None
    both = [*one, *two, drain("a", at=30.0), drain("b", at=31.0)]
    assert lost_at(*both) == 31.0
    assert lost_at(*both, gone("a", at=40.0), gone("b", at=41.0)) == 31.0, "it was lost with the drain"
    assert lost_at(*both, DrainEnded(at=35.0, node="b", reason="needed")) is None
    assert lost_at(*both, seen("c"), NodeReady(at=50.0, node="c", address="c:1")) is None
    assert lost_at(*one, gone("a", GoneCause.UNANNOUNCED, at=90.0)) == 90.0
    cover = [seen("o", placement=ON_DEMAND), NodeReady(at=20.0, node="o", address="o:1")]
    assert lost_at(*cover, gone("o", at=40.0)) is None


def test_a_batch_finds_the_spot_node_that_stays_wherever_it_stands() -> None:
    """Nodes that leave and come back in one batch are looked at again, whatever the order."""
    nodes = "abcd"
    start = [e for n in nodes for e in (seen(n), NodeReady(at=20.0, node=n, address=f"{n}:1"))]
    for order in itertools.permutations(nodes):
        leave = [drain(n, at=30.0 + i) for i, n in enumerate(order)]
        back = DrainEnded(at=32.5, node=order[0], reason="needed")
        assert reduce(replay(start), *leave).spot_lost_at == 33.0
        kept = reduce(replay(start), *leave[:3], back, leave[3])
        assert kept.spot_lost_at is None, "the first one is back"
        assert (
            reduce(replay(start), *leave[:3], back, leave[3], drain(order[0], at=40.0)).spot_lost_at == 40.0
        )


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.QUOTA])
def test_spot_that_was_never_there_is_lost_from_its_first_refusal(outcome: Outcome) -> None:
    again = [opened("t2", at=500.0), closed(outcome, "t2", at=501.0)]
    memory = replay([opened(at=5.0), closed(outcome, at=6.0), *again])
    assert memory.spot_lost_at == 6.0
    beside = [
        seen("a"),
        NodeReady(at=20.0, node="a", address="a:1"),
        opened("t2", at=30.0),
        closed(outcome, "t2", at=31.0),
    ]
    assert replay(beside).spot_lost_at is None
    on_demand = opened("t3", at=5.0, placement=ON_DEMAND)
    assert replay([on_demand, closed(outcome, "t3")]).spot_lost_at is None


def test_when_a_node_first_served() -> None:
    first = applied({"n": TargetPhase.DRAINING}, at=10.0)
    assert replay([first]).served_at is None
    memory = replay([first, applied({"n": TargetPhase.ACTIVE}, at=11.0), applied({"n": None}, at=12.0)])
    assert memory.served_at == 11.0


def test_pause_and_resume() -> None:
    memory = replay([Paused(at=1.0, by="ann", reason="why", until=50.0)])
    assert memory.pause is not None
    assert memory.pause.holds(49.9)
    assert not memory.pause.holds(50.0)
    assert reduce(memory, Resumed(at=2.0, by="ann")).pause is None


def test_operator_requests() -> None:
    memory = replay([seen(), OperatorDrained(at=30.0, node="n", budget=9.0, reason="kernel")])
    request = memory.nodes["n"].operator
    assert request is not None
    assert (request.since, request.budget, request.reason) == (30.0, 9.0, "kernel")
    assert reduce(memory, OperatorUndrained(at=31.0, node="n", reason="")).nodes["n"].operator is None


# -- drains and targets --------------------------------------------------------------------------------


def test_a_drain_whose_deadline_moves_goes_on() -> None:
    memory = replay([seen(), drain(at=25.0), NodeIdle(at=30.0, node="n"), drain(at=40.0, deadline=50.0)])
    record = memory.nodes["n"]
    assert record.drain is not None
    assert (record.drain.since, record.drain.deadline, record.idle_since) == (25.0, 50.0, 30.0)


def test_a_drain_that_ends_leaves_nothing() -> None:
    before = replay([seen(), NodeReady(at=15.0, node="n", address="")])
    drained = reduce(before, drain(cause=Cause.OPERATOR), NodeIdle(at=30.0, node="n"))
    assert reduce(drained, DrainEnded(at=35.0, node="n", reason="")) == before


def test_since_when_nobody_sends_a_node_requests() -> None:
    def detached(*events: Event) -> float | None:
        return replay([seen("n"), *events]).nodes["n"].detached_at

    taken = applied({"n": ACTIVE}, at=20.0)
    assert detached(taken) is None
    assert detached(taken, applied({"n": DRAINING}, at=30.0)) == 30.0
    assert detached(taken, applied({"n": DRAINING}, at=30.0), applied({"n": None}, at=40.0)) == 30.0
    assert detached(taken, applied({"n": None}, at=40.0)) == 40.0
    assert detached(taken, applied({"n": DRAINING}, at=30.0), applied({"n": ACTIVE}, at=35.0)) is None
    both = [taken, applied({"n": ACTIVE}, at=21.0, balancer="alb")]
    assert (
        detached(*both, applied({"n": None}, at=30.0), applied({"n": None}, at=33.0, balancer="alb")) == 33.0
    )


def test_the_first_acknowledgement_of_a_daemon_names_the_whole_set() -> None:
    history: list[Event] = [seen("a"), seen("b"), applied({"a": ACTIVE, "b": ACTIVE})]
    memory = replay([*history, DaemonStarted(at=60.0, epoch=2), applied({"b": ACTIVE}, at=61.0)])
    assert memory.targets == {"gw": {"b": ACTIVE}}
    assert memory.nodes["a"].detached_at == 61.0
    assert memory.nodes["b"].detached_at is None
    assert reduce(memory, applied({"a": ACTIVE}, at=62.0)).targets == {"gw": {"a": ACTIVE, "b": ACTIVE}}


# -- swaps ---------------------------------------------------------------------------------------------


def test_a_swap_from_notice_to_done() -> None:
    stages = []
    memory = Memory()
    for event in (
        seen("old"),
        NodeReady(at=15.0, node="old", address=""),
        applied({"old": ACTIVE}, at=16.0),
        notice("old", at=20.0),
        drain("old", at=20.0),
        opened("t-new", at=20.0, replaces="old"),
        applied({"old": DRAINING}, at=20.5),
        seen("new", at=25.0),
        NodeIdle(at=30.0, node="old"),
        NodeReady(at=60.0, node="new", address=""),
        gone("old", at=100.0),
    ):
        memory = reduce(memory, event)
        swap = memory.swaps.get("old")
        stages.append((swap.stage, swap.incoming) if swap is not None else None)
    assert stages == [
        None,
        None,
        None,
        None,
        ("noticed", ""),
        ("noticed", "t-new"),
        ("detached", "t-new"),
        ("detached", "new"),
        ("drained", "new"),
        ("replaced", "new"),
        ("done", "new"),
    ]
    swap = memory.swaps["old"]
    assert (swap.opened_at, swap.deadline, swap.detached_at, swap.drained_at) == (20.0, 140.0, 20.5, 30.0)
    assert (swap.replaced_at, swap.gone_at) == (60.0, 100.0)
    assert memory.incoming == {"new": "old"}


@pytest.mark.parametrize("event", [closed(Outcome.REFUSED, "t-new"), closed(Outcome.DIED, "t-new")])
def test_a_place_that_nobody_took_is_open_again(event: Event) -> None:
    memory = replay([seen("old"), notice("old"), drain("old"), opened("t-new", replaces="old"), event])
    assert memory.swaps["old"].incoming == ""
    assert memory.incoming == {}


def test_a_replacement_that_dies_before_it_was_ready_leaves_its_place_open() -> None:
    history = [seen("old"), notice("old"), drain("old"), opened("t-new", replaces="old"), seen("new")]
    assert replay([*history, gone("new", GoneCause.UNANNOUNCED)]).swaps["old"].incoming == ""
    ready = NodeReady(at=80.0, node="new", address="")
    assert replay([*history, ready, gone("new", GoneCause.UNANNOUNCED)]).swaps["old"].incoming == "new"


def test_a_standby_that_is_found_at_work_keeps_what_was_said_of_it_and_decided() -> None:
    """Of an old journal: it drains for a notice, asked for by nobody who knew that it works."""
    before = replay(
        [
            seen(standby=StandbyKind.STOPPED, placement=ON_DEMAND),
            notice(),
            OperatorDrained(at=21.0, node="n", budget=9.0, reason="maintenance"),
            drain(at=22.0),
        ]
    ).nodes["n"]
    after = reduce(Memory(nodes={"n": before}), seen(at=23.0, placement=ON_DEMAND)).nodes["n"]
    assert (after.standby, after.started_at) == (None, 23.0)
    assert (after.notices, after.operator, after.drain) == (before.notices, before.operator, before.drain)


def test_a_loss_without_notice_opens_its_swap_when_it_is_seen() -> None:
    swap = replay([seen("old"), gone("old", GoneCause.UNANNOUNCED, at=50.0)]).swaps["old"]
    assert (swap.opened_at, swap.detached_at, swap.gone_at, swap.replaced_at) == (50.0, 50.0, 50.0, None)


@pytest.mark.parametrize("cause", [Cause.EXCESS, Cause.RETURN, Cause.STANDBY])
def test_what_needs_no_replacement_opens_no_swap(cause: Cause) -> None:
    assert not replay([seen(), drain(cause=cause)]).swaps


def test_a_cancelled_notice_closes_its_swap_unless_the_node_drains() -> None:
    history = [seen("old"), notice("old"), opened("t-new", replaces="old")]
    assert replay([*history, notice("old", cancelled=True)]).swaps == {}
    assert "old" in replay([*history, drain("old"), notice("old", cancelled=True)]).swaps


def test_ended_swaps_are_let_go_and_open_ones_are_not() -> None:
    history: list[Event] = []
    for i in range(2000):
        history += [
            seen(f"n{i}", at=float(i)),
            drain(f"n{i}", at=float(i)),
            opened(f"x{i}", replaces=f"n{i}"),
        ]
        if i != 7:
            history.append(gone(f"n{i}", at=float(i)))
    memory = replay(history)
    assert "n7" in memory.swaps
    assert "n1999" in memory.swaps
    assert len(memory.swaps) <= 4 * SWAPS_KEPT
    assert len(memory.incoming) <= len(memory.swaps)


# -- a fold --------------------------------------------------------------------------------------------

_node = st.sampled_from(["a", "b", "c"])
_time = st.floats(0.0, 500.0)
_life = st.one_of(
    st.builds(lambda n, t: seen(n, at=t), _node, _time),
    st.builds(lambda n, t: NodeReady(at=t, node=n, address=""), _node, _time),
    st.builds(lambda n, t: notice(n, at=t), _node, _time),
    st.builds(lambda n, t: notice(n, at=t, cancelled=True), _node, _time),
    st.builds(lambda n, t, c: drain(n, at=t, cause=c), _node, _time, st.sampled_from(list(Cause))),
    st.builds(lambda n, t: DrainEnded(at=t, node=n, reason=""), _node, _time),
    st.builds(lambda n, t, r: opened(f"t-{n}", at=t, replaces=r), _node, _time, _node),
    st.builds(lambda n, t, o: closed(o, f"t-{n}", at=t), _node, _time, st.sampled_from(list(Outcome))),
    st.builds(lambda n, t: ending(n, at=t), _node, _time),
    st.builds(lambda n, t, c: gone(n, c, at=t), _node, _time, st.sampled_from(list(GoneCause))),
    st.builds(lambda n, t, p: applied({n: p}, at=t), _node, _time, st.sampled_from([ACTIVE, DRAINING, None])),
    st.builds(lambda t: DaemonStarted(at=t, epoch=int(t)), _time),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_life, max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_the_same_events_give_the_same_memory_however_they_are_cut(
    history: list[Event], cuts: list[int]
) -> None:
    whole = replay(history)
    cut = Memory()
    edges = sorted({0, len(history), *(c for c in cuts if c < len(history))})
    for first, last in itertools.pairwise(edges):
        cut = reduce(cut, *history[first:last])
    assert cut == whole
    one_by_one = Memory()
    for event in history:
        one_by_one = reduce(one_by_one, event)
    assert one_by_one == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(_life, max_size=40))
def test_memory_is_consistent_with_itself(history: list[Event]) -> None:
    memory = replay(history)
    for incoming, outgoing in memory.incoming.items():
        assert memory.swaps[outgoing].incoming == incoming
    for outgoing, swap in memory.swaps.items():
        assert swap.outgoing == outgoing
        if swap.incoming and swap.replaced_at is None:
            assert memory.incoming[swap.incoming] == outgoing
    for token, intent in memory.intents.items():
        assert intent.token == token
        assert intent.attempts >= 1


@settings(max_examples=50, deadline=None)
@given(st.lists(_life, max_size=20))
def test_a_memory_that_was_handed_out_never_changes(history: list[Event]) -> None:
    before = replay(history)
    kept = replace(before, nodes=dict(before.nodes), intents=dict(before.intents), swaps=dict(before.swaps))
    reduce(before, *history)
    assert before == kept


def test_a_removed_pool_is_forgotten_but_for_what_keeps_tokens_unique() -> None:
    memory = replay([DaemonStarted(at=1.0, epoch=9), PoolConfigured(at=1.0, replicas=4), PoolWhole(at=2.0)])
    memory = replace(memory, serial=7)
    assert reduce(memory, PoolRemoved(at=3.0)) == Memory(epoch=9, serial=7)
