"""Each old predicate about a node equals its new expression, in worlds made at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st

from policies import at_work, drain, facts, fleet, reach
from policies.actions import ActionKind, Cause
from policies.evidence import Evidence, Witness
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Phase,
    Placement,
    Pool,
    StandbyKind,
    Target,
    TargetPhase,
    TargetState,
    World,
)
from policies.node import Node, address_of, contradicts_stopped, join
from policies.records import DrainRecord, Intent, Memory, NodeRecord, OperatorRequest, intent_key
from policies.value import replace

NOW, AWAKE = 10_000.0, 9_950.0
AGES = (0.0, 0.5, 1.0, 4.0, 5.0, 10.0, 20.0, 40.0, 60.0, 70.0, 130.0, 200.0, 500.0, 1200.0)
ages = st.sampled_from(AGES)
maybe_age = st.none() | ages


@st.composite
def nodes(draw: Any, number: int) -> tuple[NodeRecord, Instance | None, EngineReading | None, Intent | None]:
    name = f"n{number}"
    market = draw(st.sampled_from(list(Market)))
    placement = Placement("toy", draw(st.sampled_from(["r", "q"])), "a", "gpu", market)
    began = NOW - draw(ages)
    ready = draw(maybe_age)
    cause = draw(st.none() | st.sampled_from(list(Cause)))
    record = NodeRecord(
        id=name,
        token=draw(st.sampled_from([f"p/7/{number}", f"p/6/{number}", "odd"])),
        placement=placement,
        launched_at=began,
        started_at=began,
        price=1.0,
        address=draw(st.sampled_from(["", f"{name}:1"])),
        standby=draw(st.sampled_from([None, None, None, StandbyKind.STOPPED])),
        ready_at=None if ready is None else NOW - ready,
        notices=tuple(
            Notice(
                id=f"x{i}",
                kind=draw(st.sampled_from(list(NoticeKind))),
                node=name,
                deadline=NOW + draw(ages),
                source="s",
                confidence=draw(st.sampled_from(list(Confidence))),
                seen_at=NOW - draw(ages),
                cancelled=draw(st.booleans()),
            )
            for i in range(draw(st.integers(0, 2)))
        ),
        drain=None
        if cause is None
        else DrainRecord(since=NOW - draw(ages), deadline=NOW + draw(ages), cause=cause, reason="r"),
        idle_since=draw(st.none() | st.just(NOW - draw(ages))),
        operator=draw(st.none() | st.just(OperatorRequest(since=NOW - draw(ages), budget=10.0, reason="o"))),
        detached_at=draw(st.none() | st.just(NOW - draw(ages))),
    )
    state = draw(st.none() | st.sampled_from(list(InstanceState)))
    instance = (
        None
        if state is None
        else Instance(
            id=name,
            pool="p",
            token=record.token,
            placement=placement,
            state=state,
            address=draw(st.sampled_from(["", f"{name}:1"])),
            launched_at=began,
            price=1.0,
            standby=record.standby,
        )
    )
    reading = None
    if draw(st.booleans()):
        at = NOW - draw(ages)
        failing = draw(maybe_age)
        reading = EngineReading(
            node=name,
            at=at,
            ready=draw(st.booleans()),
            ok=failing is None,
            failing_since=None if failing is None else at - failing,
            running=draw(st.integers(0, 2)),
            failure="" if failing is None else "refused",
        )
    intent = None
    if draw(st.sampled_from([False, False, True])):
        token = intent_key(name, ActionKind.TERMINATE)
        accepted = draw(st.none() | st.just(NOW - 1.0))
        intent = Intent(token=token, kind=ActionKind.TERMINATE, node=name, at=NOW - 5.0, accepted_at=accepted)
    return record, instance, reading, intent


@st.composite
def instants(draw: Any) -> tuple[Pool, World, Memory]:
    """A pool at one instant, with witnesses that know different things."""
    count = draw(st.integers(1, 5))
    found = [draw(nodes(n)) for n in range(count)]
    names = [f"n{n}" for n in range(count)]
    balancers, targets, applied, writing = {}, {}, {}, {}
    for name in draw(st.sampled_from([(), ("gw",), ("gw", "alb")])):
        shown = tuple(
            Target(
                id=n,
                address=f"{n}:9",
                state=draw(st.sampled_from(list(TargetState))),
                in_flight=draw(st.none() | st.integers(0, 2)),
                failing_since=draw(st.none() | st.just(NOW - draw(ages))),
            )
            for n in names
            if draw(st.booleans())
        )
        at = draw(maybe_age)
        balancers[name] = Observed(
            value=shown, at=None if at is None else NOW - at, error=draw(st.sampled_from(["", "503"]))
        )
        targets[name] = {n: draw(st.sampled_from(list(TargetPhase))) for n in names if draw(st.booleans())}
        if draw(st.booleans()):
            applied[name] = NOW - draw(ages)
        writing[name] = tuple(n for n in names if draw(st.sampled_from([False, False, True])))
    world = World(
        now=NOW,
        regions={
            r: Observed(
                value=tuple(i for _, i, _, _ in found if i is not None and i.placement.region == r),
                at=NOW - draw(ages),
            )
            for r in "rq"
        },
        engines={r.node: r for _, _, r, _ in found if r is not None},
        balancers=balancers,
        writing=writing,
        epoch=7,
        awake_since=draw(st.sampled_from([AWAKE, 0.0])),
    )
    memory = Memory(
        nodes={r.id: r for r, _, _, _ in found},
        targets=targets,
        applied_at=applied,
        intents={i.token: i for _, _, _, i in found if i is not None},
        replicas=count,
        whole_at=draw(st.none() | st.just(9_000.0)),
    )
    return Pool(name="p", replicas=count), world, memory


Check = Callable[[Pool, World, Memory, fleet.Node, Node, Evidence], tuple[object, object]]


def looked(world: World, old: fleet.Node) -> bool:
    """Its engine was not seen to be silent before this daemon woke up: what was seen then says nothing."""
    reading = world.engines.get(old.id)
    return reading is None or reading.failing_since is None or reading.at >= world.awake_since


def newly_running(world: World, memory: Memory, old: fleet.Node) -> bool:
    """Its engine answers or has made a token, and no journal says so: a machine that runs is not stopped."""
    reading, ready_at = world.engines.get(old.id), memory.nodes[old.id].ready_at
    if reading is None or ready_at is not None:
        return False
    vouched = old.id in reach.vouched_for(world)
    return not vouched if reading.failing_since is not None else not reading.ready


CHECKS: dict[str, Check] = {
    "phase": lambda p, w, m, o, n, e: (o.phase, n.phase) if not newly_running(w, m, o) else (None, None),
    "address": lambda p, w, m, o, n, e: (o.address, n.address),
    "leaving": lambda p, w, m, o, n, e: (o.leaving, n.leaving),
    "capacity": lambda p, w, m, o, n, e: (o.capacity, n.capacity),
    "working": lambda p, w, m, o, n, e: (o.working, n.working),
    "ready": lambda p, w, m, o, n, e: (o.ready, n.ready),
    "sure": lambda p, w, m, o, n, e: (o.sure, n.reliable),
    "healthy": lambda p, w, m, o, n, e: (
        o.healthy,
        n.healthy and (o.phase is Phase.READY or o.healthy or n.ready_at is not None),
    ),
    "probed": lambda p, w, m, o, n, e: (o.probed, n.probed),
    "answers": lambda p, w, m, o, n, e: (o.answers, n.answers),
    "unknown": lambda p, w, m, o, n, e: (o.unknown, n.unknown),
    "serving": lambda p, w, m, o, n, e: (o.serving, n.serving),
    "in_service": lambda p, w, m, o, n, e: (o.in_service, n.serving or n.unserved),
    "attached": lambda p, w, m, o, n, e: (o.attached, n.attached),
    "in_flight": lambda p, w, m, o, n, e: (o.in_flight, n.in_flight),
    "surely_doomed": lambda p, w, m, o, n, e: (o.surely_doomed, n.taken),
    "drains_by_choice": lambda p, w, m, o, n, e: (o.drains_by_choice, n.drains_by_choice),
    "out_of_sight": lambda p, w, m, o, n, e: (o.out_of_sight, n.out_of_sight),
    "shown_active": lambda p, w, m, o, n, e: (
        o.id in at_work.shown_active(w),
        o.id in e.balancers.shows_active,
    ),
    "routed": lambda p, w, m, o, n, e: (
        o.id in at_work.routed(w, m),
        n.routed.open and n.routed.witness is Witness.BALANCER,
    ),
    "sends_to": lambda p, w, m, o, n, e: (o.id in at_work.sends_to(w, m), n.routed.holds),
    "sent_by": lambda p, w, m, o, n, e: (
        [o.id in at_work.sent_by(w, m, b) for b in sorted(w.balancers)],
        [n.id in b.sends_to for b in e.balancers],
    ),
    "confirmed": lambda p, w, m, o, n, e: (at_work.confirmed(w, m), e.balancers.confirmed),
    "vouched_for": lambda p, w, m, o, n, e: (
        (o.id in reach.vouched_for(w), o.id in reach.vouched_for(w, read_well=True)),
        (n.id in e.balancers.finds_healthy, n.id in e.balancers.surely_healthy),
    ),
    "dead": lambda p, w, m, o, n, e: (
        [at_work.AtWork(p, w, m).dead(o, times) for times in (0.0, 1.0, 3.0)],
        [n.reachable.fails(times * p.health.replace_after) for times in (0.0, 1.0, 3.0)],
    ),
    "never_served": lambda p, w, m, o, n, e: (
        at_work.AtWork(p, w, m).never_served(o),
        e.never_served(n.token, n.ready_at),
    ),
    "let_go_lately": lambda p, w, m, o, n, e: (
        at_work.AtWork(p, w, m).let_go_lately(o),
        e.let_go_lately(m.nodes[n.id]),
    ),
    "holds_nothing": lambda p, w, m, o, n, e: (
        at_work.AtWork(p, w, m).holds_nothing(o),
        n.holds_requests.fails(),
    ),
    "asked_in_vain": lambda p, w, m, o, n, e: (
        at_work.AtWork(p, w, m).asked_in_vain(o),
        e.end_unconfirmed(n.id),
    ),
    "perhaps_at_work": lambda p, w, m, o, n, e: (at_work.perhaps_at_work(p, w, o), n.may_be_at_work),
    "looked_at": lambda p, w, m, o, n, e: (drain.looked_at(w, o.id), e.looked_at(n.id)),
    "counted_at": lambda p, w, m, o, n, e: (drain._counted_at(w, o.id), e.counted_at(n.id)),
    "runs_all_the_same": lambda p, w, m, o, n, e: (
        reach.runs_all_the_same(p, w, m.nodes[o.id]),
        contradicts_stopped(e, m.nodes[n.id]),
    ),
    "address_of": lambda p, w, m, o, n, e: (
        fleet.address_of(m.nodes[o.id], e.listed.get(o.id), w),
        address_of(e, m.nodes[n.id]),
    ),
    "sent_anew": lambda p, w, m, o, n, e: (facts._sent_anew(w, m, o.id), e.balancers.sends_anew(n.id)),
    "silent": lambda p, w, m, o, n, e: (
        facts._silent(p, w, o.id),
        n.heard.fails(p.patience.vanish_grace),
    ),
}


@settings(max_examples=600, phases=(Phases.generate,), suppress_health_check=list(HealthCheck), deadline=None)
@given(instants())
def test_an_old_predicate_equals_its_new_expression(instant: tuple[Pool, World, Memory]) -> None:
    pool, world, memory = instant
    evidence, old = Evidence(pool, world, memory), fleet.Fleet.of(pool, world, memory)
    for node in old.nodes:
        passed_over = bool(old.sight.passed_over(node.placement.region))
        new = join(
            evidence, memory.nodes[node.id], notice=node.doomed, price=node.price, in_sight=not passed_over
        )
        if node.lost:
            new = replace(new, lost=True)
        if not looked(world, node) or newly_running(world, memory, node):
            continue
        for what, check in CHECKS.items():
            before, after = check(pool, world, memory, node, new, evidence)
            assert before == after, what
